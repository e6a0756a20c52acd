"""What runs here: threads, instruction set, devices."""

from __future__ import annotations

from importlib.metadata import version

from rnnkern import _core
from rnnkern._checks import positive_int
from rnnkern.device import cuda_status

_MOST_THREADS = 1024


def get_num_threads() -> int:
    """How many threads a call from this thread may use (OpenMP's setting)."""
    return _core.max_threads()


def set_num_threads(count: int) -> None:
    """Let calls from this thread use up to `count` threads; results do not depend on it.

    Raises:
        TypeError: count is not an integer.
        ValueError: count is not in 1..1024.

    """
    if positive_int("count", count) > _MOST_THREADS:
        raise ValueError(f"count must be at most {_MOST_THREADS}, got {count}")
    _core.set_max_threads(count)


def info() -> dict[str, str]:
    """Version, instruction set, threads and devices, each with why it is so."""
    return {
        "version": version("rnnkern"),
        "instruction set": f"{_core.isa()} ({_core.isa_reason()})",
        "supported here": ", ".join(_core.supported_isas()),
        "bfloat16 products": _core.bfloat16_product(),
        "threads": f"{get_num_threads()} (OMP_NUM_THREADS or rnnkern.set_num_threads changes it)",
        "cuda": cuda_status(),
    }

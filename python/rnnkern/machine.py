# SPDX-License-Identifier: Apache-2.0
"""What runs here: threads, instruction set, devices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from rnnkern import _core
from rnnkern._checks import positive_int
from rnnkern._version import __version__

_LARGEST = 2**31 - 1


def get_num_threads() -> int:
    """How many threads a call from this Python thread may use; never more than there are cores.

    That is what `threads` asks for, or else `set_num_threads`, the environment's
    RNNKERN_NUM_THREADS or OMP_NUM_THREADS as they were at import, or else as many as there are: the
    processors that the thread may run on (its affinity mask), or as many as the control group's
    quota of CPU time is worth where that is less. `info` says which of them it is.

    Example:
        >>> with rk.threads(1):
        ...     rk.get_num_threads()
        1

    """
    return _core.thread_limit()


def set_num_threads(count: int) -> None:
    """Let calls of this process use up to `count` threads; results do not depend on it.

    More than there are cores is not refused, and has no effect (see `get_num_threads`). Calls that
    run at the same time share these threads.

    Raises:
        TypeError: count is not an integer.
        ValueError: count is less than 1.

    Example:
        >>> rk.set_num_threads(1)
        >>> rk.get_num_threads()
        1

    """
    _core.set_process_threads(min(positive_int("count", count), _LARGEST))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, calls from this Python thread use up to `count` threads, whatever the process may.

    ::

        with rk.threads(1):
            y, state = lstm(x)

    Contexts may be nested: the innermost counts. Other Python threads do not notice.

    Raises:
        TypeError: count is not an integer.
        ValueError: count is less than 1.

    Example:
        >>> with rk.threads(1):
        ...     y, h = rk.GRU(3, 4)(np.ones((5, 2, 3), np.float32))

    """
    before = _core.own_threads()
    _core.set_own_threads(min(positive_int("count", count), _LARGEST))
    try:
        yield
    finally:
        _core.set_own_threads(before)


def register_threadpoolctl() -> None:
    """Let threadpoolctl limit rnnkern's threads, as it does those of OpenMP and BLAS.

    Called once, before the limits are set; ``threadpoolctl.threadpool_limits`` then changes what
    `get_num_threads` tells, for the whole process, and its ``user_api`` is "rnnkern". It happens by
    itself where threadpoolctl has been imported before rnnkern.

    Raises:
        ImportError: threadpoolctl is not installed.

    Example:
        >>> import threadpoolctl
        >>> rk.register_threadpoolctl()
        >>> with threadpoolctl.threadpool_limits(1, user_api="rnnkern"):
        ...     rk.get_num_threads()
        1

    """
    import threadpoolctl  # type: ignore[import-untyped]

    _register(threadpoolctl)


def _register(threadpoolctl: ModuleType) -> None:
    class Controller(threadpoolctl.LibController):  # type: ignore[misc, name-defined]
        user_api = "rnnkern"
        internal_api = "rnnkern"
        filename_prefixes = ("_core",)
        check_symbols = ("rnnkern_get_num_threads", "rnnkern_set_num_threads")

        def get_num_threads(self) -> int:
            return int(self.dynlib.rnnkern_get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.rnnkern_set_num_threads(num_threads)

        def get_version(self) -> str:
            return __version__

    if not any(c.internal_api == "rnnkern" for c in threadpoolctl._ALL_CONTROLLERS):
        threadpoolctl.register(Controller)


if "threadpoolctl" in sys.modules:
    _register(sys.modules["threadpoolctl"])


def info() -> dict[str, str]:
    """Version, instruction set, threads and devices, each with why it is so.

    Example:
        >>> sorted(rk.info())
        ['bfloat16 products', 'cuda', 'instruction set', 'int8 products', 'supported here',
         'threads', 'version']

    """
    from rnnkern.devices.cuda import cuda_status  # which most programs do not wait for

    return {
        "version": __version__,
        "instruction set": f"{_core.isa()} ({_core.isa_reason()})",
        "supported here": ", ".join(_core.supported_isas()),
        "bfloat16 products": _core.bfloat16_product(),
        "int8 products": _core.int8_product(),
        "threads": f"{get_num_threads()} ({_core.thread_limit_reason()})",
        "cuda": cuda_status(),
    }

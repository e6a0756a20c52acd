# SPDX-License-Identifier: Apache-2.0
"""Every cell, mode and pass once on a GPU: python bench/gpu_smoke.py FILE; bench/gpu runs it.

From the smallest case up, each on record before it runs. A wrong one tells where it is wrong. One
that leaves the device broken ends the process, and so does one that does not end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_work
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import rnnkern as rk
from rnnkern.devices import get_device

from support import cuda_kernels as kernels
from support.cuda_kernels import MODES, Case, Stack
from support.layers import WITH_PRODUCT

_LONGEST = 25.0  # seconds for a case: a wait in vain ends after some eight
_TURNS = 20  # of a case that must give the same bits each time

Check = tuple[str, Callable[[Any], None]]


def checks() -> Iterator[Check]:
    """Name and work of each; the work raises."""

    def case(case: Case) -> Callable[[Any], None]:
        def work(side: Any) -> None:
            kernels.check(side, case)

        return work

    for mode in MODES:  # no blocks that wait for each other
        for transposed in (False, True):
            yield (
                f"matmul {mode[1] or mode[0]}{' transposed' if transposed else ''}",
                partial(_check_matmul, transposed, mode),
            )
    yield "one block", case(Case("rnn_tanh", 4, keep=False))
    yield "blocks that wait for each other", case(Case("rnn_tanh", 200, batch=7, keep=False))
    yield "two phases", case(Case("gru_before", 200, batch=7, steps=7, keep=False))
    for dtype, compute in MODES:
        for cell in WITH_PRODUCT:
            for batch in (7, 2):  # the tensor cores' path, and the one for few rows
                made = Case(cell, 100, batch, steps=9, inputs=5, dtype=dtype, compute=compute)
                yield (
                    f"{cell} {compute or dtype} B{batch} forward",
                    case(Case(**{**vars(made), "keep": False})),
                )
                yield f"{cell} {compute or dtype} B{batch} backward", case(made)
    lengths = tuple(int(n) for n in np.arange(33) % 21)
    for dtype, compute in MODES:
        options: dict[str, Any] = {"dtype": dtype, "compute": compute, "lengths": lengths}
        ragged = Case("lstm", 100, 33, 20, 7, reverse=(False, True), **options)
        yield f"ragged, both directions {compute or dtype}", case(ragged)
        stack = Stack("gru_after", 100, 33, 20, 7, layers=4, dropout=True, **options)
        yield f"wavefront {compute or dtype}", case(stack)
    yield "long", case(Case("lstm", 300, 9, 300, 5, compute="bfloat16"))
    yield "most shared memory", case(Case("rnn_tanh", 1536, 7, 3, 8, reverse=(False, True)))
    yield "streaming", case(Case("lstm", 2048, 5, 4, 8, keep=False))
    for cls, hidden, batch, steps, compute, more in (
        (rk.LSTM, 768, 16, 512, "bfloat16", {}),
        (rk.GRU, 1024, 64, 128, "float16", {"reset": "before"}),
        (rk.LSTM, 512, 32, 256, "float16", {"num_layers": 2}),
        (rk.LSTM, 300, 17, 256, "tfloat32", {"bidirectional": True}),
        (rk.LSTM, 1024, 32, 128, None, {}),
    ):
        name = f"same bits {cls.__name__} H{hidden} B{batch} T{steps} {compute} {more}"
        yield name, partial(same_bits, cls, hidden, compute, more, steps, batch)


def _check_matmul(transposed: bool, mode: tuple[str, str | None], side: Any) -> None:
    kernels.check_matmul(side, transposed, not transposed, mode)


def same_bits(
    cls: Any, hidden: int, compute: Any, more: Any, steps: int, batch: int, _: Any
) -> None:
    """A race between blocks at real sizes shows as other bits."""
    layer = cls(hidden, hidden, compute=compute, device="cuda", seed=0, **more)
    xp = get_device("cuda").xp
    x = xp.asarray(np.random.default_rng(0).standard_normal((steps, batch, hidden), np.float32))

    def once() -> list[Any]:
        y, _, tape = layer.forward(x)
        dx, _, grads = tape.backward(y)
        return [y, dx, *grads.values()]

    first, names = once(), ["y", "dx", *layer.params]
    assert all(bool(xp.isfinite(array).all()) for array in first), "not all numbers are finite"
    for turn in range(_TURNS):
        for name, got, want in zip(names, once(), first, strict=True):
            other = got.view(xp.uint32) != want.view(xp.uint32)
            if bool(other.any()):
                where = [int(i[0]) for i in xp.nonzero(other)]
                raise AssertionError(
                    f"{name} has other bits in turn {turn}, {int(other.sum())} numbers, the first "
                    f"at {where}; plan {layer.plan(steps, batch, training=True)}"
                )


def run(path: Path, side: Any, all_of_them: list[Check], synchronize: Callable[[], None]) -> int:
    """Those that are not on record, as far as there is time; how many of them are wrong."""
    done = {record["key"] for record in gpu_work.read(path) if "smoke" in record}
    bad, end = 0, time.monotonic() + gpu_work.seconds_allowed(3600.0)
    for name, work in all_of_them:
        if f"smoke {name}" in done:
            continue
        if time.monotonic() > end:
            break
        record = {"key": f"smoke {name}", "smoke": name}
        with gpu_work.begun(path, record, _LONGEST):
            begin = time.perf_counter()
            try:
                work(side)
            except AssertionError as error:
                record["error"] = str(error)
            except Exception as error:
                record["error"] = f"{type(error).__name__}: {error}"
            bad += "error" in record
            gpu_work.append(path, record)
            took = time.perf_counter() - begin
            print(f"{name}: {record.get('error', 'ok')}, {took:.2f} s", flush=True)
            synchronize()  # raises where the device is broken: nothing that follows would work
    return bad


def main() -> None:
    """Come to the end, whatever is wrong: a crash alone ends it before, and is passed over."""
    device: Any = get_device("cuda")
    print(device.describe(), flush=True)
    everything = list(checks())
    path = Path(sys.argv[1])
    run(path, kernels.Gpu(), everything, device.xp.cuda.Device().synchronize)
    records = [record for record in gpu_work.read(path) if "smoke" in record]
    wrong = sum("error" in record for record in records)
    print(
        f"{len(records) - wrong} of {len(everything)} cases agree, {wrong} do not, "
        f"{len(everything) - len(records)} are not run"
    )


if __name__ == "__main__":
    main()

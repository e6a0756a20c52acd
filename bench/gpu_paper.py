# SPDX-License-Identifier: Apache-2.0
"""What docs/cuda.md predicts, measured: python bench/gpu_paper.py FILE; bench/gpu runs it.

The most telling first; each line has its prediction beside it, for an H100 at 1.75 GHz.
"""

from __future__ import annotations

import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_work
import numpy as np
from gpu_measure import Case, Events, make_case, rnnkern_contender, torch_contender
from gpu_work import Work, cudnn
from numpy.typing import NDArray

import rnnkern as rk
from rnnkern.devices import get_device

SOURCE = Path(__file__).with_suffix(".cu")
_LONGEST = 30.0  # seconds for a measurement; ncu takes its time
_SHORT, _LONG = 64, 1024  # steps between which a slope is taken
_TURNS = 7

Item = tuple[str, str, str, Callable[[], str]]  # group, name, prediction, measurement


def items(xp: Any) -> Iterator[Item]:
    """All of them."""
    yield from primitives(xp)
    yield from sketch(xp)
    yield from slopes()
    yield from products(xp)
    yield from peers()
    yield from plans()
    yield from host(xp)
    yield from profile()


# -- single instructions ---------------------------------------------------------------------------


def compiled(xp: Any) -> Any:
    """The kernels of gpu_paper.cu, whose blocks are all there at once."""
    return xp.RawModule(
        code=SOURCE.read_text(), options=("-std=c++17",), enable_cooperative_groups=True
    )


def primitives(xp: Any) -> Iterator[Item]:
    """Cycles of what a step is made of."""

    def run(name: str, blocks: int, threads: int, words: int, *arguments: int) -> NDArray[Any]:
        out, memory = xp.zeros(1024, np.uint64), xp.zeros(words, np.uint32)
        kernel = compiled(xp).get_function(name)
        for _ in range(2):  # the first brings the code
            memory[...] = 0
            kernel((blocks,), (threads,), (out, memory, *map(np.int32, arguments)))
        found: NDArray[Any] = xp.asnumpy(out)
        return found

    def trips() -> str:
        cycles = run("round_trip", 1, 1, 512 * 32, 512)[:512]
        return f"{cycles.min()} to {cycles.max()} cycles, median {np.median(cycles):.0f}"

    def hand(name: str, blocks: int, threads: int, *arguments: int) -> Callable[[], str]:
        return lambda: f"{run(name, blocks, threads, 1 << 20, *arguments)[0]} cycles"

    def chain() -> str:
        out, sink = xp.zeros(2, np.uint64), xp.zeros(32, np.float32)
        for _ in range(2):
            compiled(xp).get_function("mma_chain")((1,), (32,), (out, sink, np.int32(256)))
        one, four = xp.asnumpy(out)
        return f"{one} cycles in one chain, {four} in four"

    yield "1 primitives", "relaxed load from L2, near to far", "290 to 320 cycles", trips
    for other in (1, 64, 127):
        yield (
            "1 primitives",
            f"flag to block {other} and back",
            "about 2 x 950 cycles: fence, flag, wait",
            hand("ping_pong", 128, 32, other, 500),
        )
    for stores in (0, 8):
        yield (
            "1 primitives",
            f"fence behind {stores} stores a thread",
            "about 700 cycles" if stores else "less",
            hand("fence", 1, 256, stores, 200),
        )
    yield (
        "1 primitives",
        "tagged words among 64 blocks",
        "about 520",
        hand("hand_over", 64, 32, 500),
    )
    yield "1 primitives", "mma m16n8k16", "33 cycles in one chain", chain


# -- the step as it could be -----------------------------------------------------------------------


def sketch(xp: Any) -> Iterator[Item]:
    """LSTM float16, H 768, B 16, weights in registers: right, and how fast."""
    random = np.random.default_rng(0)
    shape = (64, 8, 4, 3, 2, 32, 8)  # member, warp, step, tile, half of its rows, lane, value

    def launch(steps: int) -> tuple[Callable[[], None], Any, NDArray[Any], NDArray[Any]]:
        w = (random.standard_normal(shape) / 28).astype(np.float16)
        w[..., 3::4] = 0  # where the tags are
        x = random.standard_normal((steps, 2, 8, 4, 768)).astype(np.float32)
        y = xp.zeros((steps, 2, 8, 768), np.float32)
        there, given = xp.asarray(w), xp.asarray(x)
        kernel = compiled(xp).get_function("sketch")

        def run() -> None:
            exchange = xp.zeros(2 * 2 * 8 * 2048, np.uint8)
            kernel((128,), (256,), (there, given, y, exchange, np.int32(steps)))

        return run, y, w, x

    def right() -> str:
        run, y, w, x = launch(8)
        run()
        got, want = xp.asnumpy(y), sketch_by_numpy(w, x)
        error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        return f"relative error {error:.2g}{'' if error < 1e-2 else ': WRONG'}"

    def slope() -> str:
        clock = Events()
        times = {}
        for steps in (_SHORT, _LONG):
            run, *_ = launch(steps)
            times[steps] = timed(clock, run)
        return in_words(times)

    yield "2 sketch", "agrees with NumPy", "below 1e-2", right
    yield "2 sketch", "LSTM fp16 768/16 forward", "0.63 to 0.9 us a step", slope


def sketch_by_numpy(w: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """y (T, 2, 8, 768), from the weights as the kernel takes them."""
    # (member, tile, half, lane // 4) is the row; (warp, step, lane % 4, value) the place in h.
    parts = w.astype(np.float64).reshape(64, 8, 4, 3, 2, 8, 4, 8)
    rows = parts.transpose(0, 3, 4, 5, 1, 2, 6, 7).reshape(64, 4, 12, 256, 4)[..., :3]
    weights = rows.transpose(1, 0, 2, 3, 4).reshape(4, 768, 768)
    h = np.zeros((2, 8, 768))
    c, y = h.copy(), []
    for x_t in x.astype(np.float64):
        a = x_t + np.einsum("gun,bcn->bcgu", weights, h)
        u, f, n, o = (a[:, :, k] for k in range(4))
        c = c / (1 + np.exp(-f)) + np.tanh(n) / (1 + np.exp(-u))
        state = np.tanh(c) / (1 + np.exp(-o))
        y.append(state)
        h = state.astype(np.float16).astype(np.float64)
    return np.array(y)


# -- ours and cuDNN's ------------------------------------------------------------------------------


def timed(clock: Any, run: Callable[[], Any]) -> float:
    """Milliseconds, the median."""
    run()
    clock.synchronize()
    median: float = statistics.median(clock.milliseconds(run) for _ in range(_TURNS))
    return median


def in_words(times: dict[int, float]) -> str:
    """Times by steps as a slope and what is left at no step."""
    (few, least), (many, most) = sorted(times.items())
    slope = (most - least) / (many - few)
    beside = least - slope * few
    return f"{slope * 1e3:.2f} us a step, {beside:.3f} ms beside ({most:.3f} ms at {many})"


def slope_of(work: Work, contender: Callable[[Case], Any]) -> str:
    """Of a layer over the steps."""
    clock, times = Events(), {}
    for steps in (_SHORT, work.steps):
        case = make_case(Work(**{**vars(work), "steps": steps}))
        made = contender(case)
        if isinstance(made, str):
            return made
        times[steps] = timed(clock, made.run)
    return in_words(times)


def point(training: bool, inputs: int = 768, steps: int = _LONG) -> Work:
    """The row of FlashRNN's plots."""
    return Work("paper", "lstm", 768, 16, steps, "float16", training, inputs)


def slopes() -> Iterator[Item]:
    """Ours at H 768, B 16: with few inputs, the time loop alone; with many, the products too."""
    for training, inputs, predicted in (
        (False, 8, "5.6 us a step (6.6 before parameters went by value)"),
        (False, 768, "1.3 us a step more: W_ih x"),
        (True, 8, "backward alone 10 to 13 us a step"),
        (True, 768, "21 us a step in all"),
    ):
        work = point(training, inputs)
        yield "3 ours", work.key, predicted, partial(slope_of, work, rnnkern_contender)


def products(xp: Any) -> Iterator[Item]:
    """The products over time beside cuBLAS's."""

    def measure(m: int, n: int, k: int, transposed: bool) -> str:
        kernels, clock = get_device("cuda").kernels, Events()  # type: ignore[attr-defined]
        a = xp.ones((k, m) if transposed else (m, k), np.float32)
        b = xp.ones((k, n) if transposed else (n, k), np.float32)
        out, stream = xp.empty((m, n), np.float32), xp.cuda.get_current_stream().ptr
        ours = timed(
            clock,
            lambda: kernels.matmul(
                a, b, out, transposed, not transposed, None, False, "float16", stream
            ),
        )
        text = f"{2e-9 * m * n * k / ours:.0f} TF/s"
        try:
            import torch
        except ImportError:
            return text
        left = torch.ones((m, k), device="cuda", dtype=torch.float16)
        right = torch.ones((k, n), device="cuda", dtype=torch.float16)
        theirs = timed(clock, lambda: left @ right)
        return f"{text}, torch.matmul {2e-9 * m * n * k / theirs:.0f}"

    for m, n, k, transposed in ((16384, 3072, 768, False), (3072, 768, 16384, True)):
        yield (
            "5 products",
            f"float16 {m} x {n} x {k}{', rows summed over' if transposed else ''}",
            "about 60 TF/s, cuBLAS 600 to 700",
            partial(measure, m, n, k, transposed),
        )


# Work, and the milliseconds predicted of ours and of cuDNN, forward; both ways.
_ROWS: tuple[tuple[Work, str, str], ...] = tuple(
    (Work("paper", cell, h, b, t, compute, False, h, layers, directions), ours, theirs)
    for cell, h, b, t, compute, layers, directions, ours, theirs in (
        ("lstm", 768, 16, 1024, "float16", 1, 1, "8.1; 22", "2.0; 5.2"),
        ("gru-after", 512, 32, 256, "float16", 1, 1, "1.7; 4.3", "2.2; 5.5"),
        ("gru", 512, 32, 256, "float16", 1, 1, "2.8; 6.5", "2.2; 5.5"),
        ("lstm", 256, 1, 512, "float16", 1, 1, "2.5; 5.5", "3.8; 9"),
        ("lstm", 1024, 64, 128, "float16", 1, 1, "2.4; 7.8", "0.5; 1.5"),
        ("lstm", 512, 32, 256, "float16", 2, 2, "5.1; 12.8", "5; 13"),
        ("lstm", 512, 32, 256, "float32", 1, 1, "3.0; 8.6", "2.9; 8"),
    )
)


def peers() -> Iterator[Item]:
    """cuDNN's slopes; PyTorch takes its persistent kernel only where I is a multiple of 128."""
    for row, _, theirs in _ROWS:
        for training in (False, True):
            work = Work(**{**vars(row), "training": training})
            predicted = f"{theirs} ms forward; both ways"
            yield (
                "6 cuDNN",
                f"{cudnn(work.compute)} {work.key}",
                predicted,
                partial(slope_of, work, partial(torch_contender, compute=work.compute)),
            )


def plans() -> Iterator[Item]:
    """Ours at those shapes, then with other numbers of groups than the plan's."""
    for row, ours, _ in _ROWS[1:]:
        for training in (False, True):
            work = Work(**{**vars(row), "training": training})
            predicted = f"{ours} ms forward; both ways, less 15%"
            yield "7 ours", work.key, predicted, partial(slope_of, work, rnnkern_contender)

    def forced(work: Work, groups: int) -> str:
        kernels: Any = get_device("cuda").kernels  # type: ignore[attr-defined]
        kernels.force_groups(groups)
        try:
            return slope_of(work, rnnkern_contender)
        finally:
            kernels.force_groups(0)

    for work in (point(False, 8, 256), Work(**{**vars(_ROWS[1][0]), "inputs": 8})):
        for groups in (1, 2, 4):
            predicted = "the plan's own choice is the fastest"
            name = f"{groups} groups, {work.key}"
            yield "7 plans", name, predicted, partial(forced, work, groups)


# -- the host, and a profile -----------------------------------------------------------------------


def host(xp: Any) -> Iterator[Item]:
    """What a call costs beside its kernels."""

    def call() -> str:
        layer = rk.LSTM(768, 768, compute="float16", device="cuda", seed=0)
        x, times = xp.zeros((1, 16, 768), np.float32), []
        layer(x)
        for _ in range(100):
            begin = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - begin)
        return f"{statistics.median(times) * 1e6:.0f} us"

    def graph() -> str:
        layer = rk.LSTM(768, 768, compute="float16", device="cuda", seed=0)
        x, pool = xp.zeros((_SHORT, 16, 768), np.float32), xp.cuda.MemoryPool()
        with xp.cuda.using_allocator(pool.malloc), xp.cuda.Stream(non_blocking=True) as stream:
            clock = Events()
            straight = timed(clock, lambda: layer(x))
            stream.begin_capture()
            y = layer(x)[0]
            captured = stream.end_capture()
            replayed = timed(clock, lambda: captured.launch(stream))
            del y
        return f"{replayed:.3f} ms, called {straight:.3f} ms"

    yield "8 host", "a call of one step, 768/16", "100 to 200 us of the host", call
    yield "8 host", f"a graph of {_SHORT} steps", "0.1 ms less than a call", graph


_PROFILED = """
import numpy as np, rnnkern as rk, cupy as cp
layer = rk.LSTM(768, 768, compute="float16", device="cuda", seed=0)
layer(cp.zeros((256, 16, 768), np.float32))
"""


def profile() -> Iterator[Item]:
    """Where the warps of a forward launch wait, by instruction: the whole is in the log."""

    def run() -> str:
        if shutil.which("ncu") is None:
            return "ncu is not there"
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "profile.ncu-rep")
            command = ["ncu", "--kernel-name", "regex:ForwardKernel", "--launch-count", "1"]
            command += ["--clock-control", "none", "--export", file]
            for section in ("SpeedOfLight", "WarpStateStats", "SourceCounters"):
                command += ["--section", section]
            print(output(*command, sys.executable, "-c", _PROFILED))
            details = output("ncu", "--import", file, "--page", "details")
            source = output(
                "ncu", "--import", file, "--page", "source", "--print-source", "sass", "--csv"
            )
        print(details, source, flush=True)
        lines = [" ".join(line.split()) for line in details.splitlines()]
        kept = [line for line in lines if line.startswith("Duration")]
        return "; ".join([*kept, *most_sampled(source)]) or "nothing: see the log"

    predicted = "1.4 to 1.7 ms; a sixth each for schedule, sums and products, see docs/cuda.md"
    yield "4, 8 profile", "ncu of LSTM fp16 768/16/256 forward", predicted, run


def output(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LONGEST - 5,
        check=False,
    )
    return done.stdout


def most_sampled(table: str, count: int = 12) -> list[str]:
    """The instructions at which most samples of warps were taken, of ncu's page of the source."""
    lines = table.splitlines()
    head = next((k for k, line in enumerate(lines) if "Source" in line and "Sampl" in line), None)
    if head is None:
        return []
    rows = list(csv.DictReader(lines[head:]))
    (samples, *_) = [name for name in rows[0] if name and "Sampl" in name]

    def number(row: dict[str, str]) -> int:
        text = (row.get(samples) or "").replace(",", "")
        return int(text) if text.isdigit() else 0

    total = sum(map(number, rows)) or 1
    top = sorted(rows, key=number, reverse=True)[:count]
    return [f"{100 * number(row) / total:.0f}% {row['Source'].strip()}" for row in top]


def main() -> None:
    """All that is not on record, as far as there is time; each line beside its prediction."""
    path, xp = Path(sys.argv[1]), get_device("cuda").xp
    end = time.monotonic() + gpu_work.seconds_allowed(3600.0)
    done = {record["key"] for record in gpu_work.read(path) if "paper" in record}
    for group, name, predicted, run in items(xp):
        about = {"key": f"paper {group} {name}", "paper": group, "name": name}
        about["predicted"] = predicted
        if about["key"] in done:
            continue
        if time.monotonic() > end:
            print("no time for all of them")
            break
        with gpu_work.begun(path, about, _LONGEST):
            try:
                record = about | {"measured": run()}
            except (RuntimeError, ValueError, MemoryError, subprocess.TimeoutExpired) as error:
                record = about | {"error": f"{type(error).__name__}: {error}"}
            gpu_work.append(path, record)
            print(
                f"{group}: {name}: {record.get('measured', record.get('error'))} "
                f"(predicted: {predicted})",
                flush=True,
            )
            xp.cuda.Device().synchronize()  # raises where the device is broken


if __name__ == "__main__":
    main()

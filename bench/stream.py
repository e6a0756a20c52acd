"""One step at a time against the peers: python bench/stream.py [--json FILE].

A stream of B = 1 and I = H, one thread, float32, called from Python: rnnkern's ``stream().step``,
PyTorch's cell modules, ONNX Runtime with T = 1 and the state handed on. As in run.py the answers
are compared first and the contenders take turns. A block of 512 steps stands beside. With bfloat16
weights the answer is another one, within 2e-2, so that line is not compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from peers import Array, Case, make_case, onnxruntime_session
from problems import Problem
from run import processor

import rnnkern as rk
from rnnkern import _core

HIDDEN = (16, 32, 64, 128, 256, 512, 1024)
CELLS = ("rnn", "gru_before", "gru_after", "lstm")
BLOCK = 512
_TURNS, _SECONDS = 15, 0.02  # of each contender, and of one turn
_TOLERANCE = 1e-4  # norm-wise, after some steps, between two float32 answers

Step = Callable[[Array], Array]


def rnnkern_step(case: Case, weights: str | None = None) -> Step:
    """This package's."""
    stream = case.layer.stream(weights=weights)
    out = np.empty((1, case.problem.hidden), np.float32)
    return lambda x: stream.step(x, out)


def onnxruntime_step(case: Case) -> Step | str:
    """ONNX Runtime's, or why it cannot."""
    session = onnxruntime_session(case, threads=1, stateful=True)
    if isinstance(session, str):
        return session
    names = [given.name for given in session.get_inputs()][1:]
    zero = np.zeros((1, 1, case.problem.hidden), np.float32)
    state = dict.fromkeys(names, zero)

    def step(x: Array) -> Array:
        y, *last = session.run(None, {"x": x[None], **state})
        state.update(zip(names, last, strict=True))
        result: Array = y[0, 0]
        return result

    return step


def torch_step(case: Case) -> Step | str:
    """PyTorch's cell module, or why it cannot."""
    try:
        import torch
        from peers import torch_module
    except ImportError:
        return "PyTorch is not installed"
    module = torch_module(case)
    if isinstance(module, str):
        return module
    hidden = case.problem.hidden
    kinds = {"rnn": torch.nn.RNNCell, "gru_after": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}
    cell: Any = kinds[case.problem.cell](hidden, hidden)
    for name, value in module.named_parameters():
        getattr(cell, name.removesuffix("_l0")).data.copy_(value.data)
    state: Any = None

    def step(x: Array) -> Array:
        nonlocal state
        with torch.no_grad():
            state = cell(torch.from_numpy(x), state)
        result: Array = (state[0] if isinstance(state, tuple) else state).numpy()
        return result

    return step


def alternate(work: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of one call of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(_TURNS):
        for name, call in work.items():
            call()
            start, calls = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < _SECONDS:
                for _ in range(8):
                    call()
                calls += 8
            times[name].append(spent / calls * 1e6)
    return {name: statistics.median(t) for name, t in times.items()}


def measure(cell: str, hidden: int) -> dict[str, Any]:
    """One cell and size: a step and a block of steps."""
    case = make_case(Problem(cell, 1, BLOCK, hidden, training=False))
    steps, absent = {"rnnkern": rnnkern_step(case)}, {}
    for name, found in (("onnxruntime", onnxruntime_step(case)), ("torch", torch_step(case))):
        if isinstance(found, str):
            absent[name] = found
        else:
            steps[name] = found
    answers = {n: np.concatenate([step(x).copy() for x in case.x[:9]]) for n, step in steps.items()}
    for name, got in answers.items():
        error = np.linalg.norm(got - answers["rnnkern"]) / np.linalg.norm(got)
        if not error < _TOLERANCE:
            raise SystemExit(f"{name} disagrees with rnnkern: relative error {error:.2g}")
    steps["rnnkern, bfloat16 weights"] = rnnkern_step(case, "bfloat16")
    x = case.x[0]
    times = alternate({n: lambda step=step: step(x) for n, step in steps.items()})  # type: ignore[misc]

    stream = case.layer.stream()
    blocks: dict[str, Callable[[], object]] = {"rnnkern": lambda: stream.block(case.x)}
    session = onnxruntime_session(case, threads=1)
    if not isinstance(session, str):
        blocks["onnxruntime"] = lambda: session.run(None, {"x": case.x})
    return {
        "cell": cell,
        "hidden": hidden,
        "step_microseconds": times,
        "block_microseconds": alternate(blocks),
        "absent": absent,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args()
    rk.set_num_threads(1)
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(1)
    lines = []
    print(f"{processor()}, 1 thread, {_core.isa()}; microseconds, and the peers' times over ours")
    for cell in options.cells:
        for hidden in HIDDEN:
            lines.append(line := measure(cell, hidden))
            text = [f"{cell:11} H {hidden:5}"]
            for kind in ("step", "block"):
                times = line[f"{kind}_microseconds"]
                ours = times["rnnkern"]
                ratios = "".join(
                    f" {n} x{t / ours:.2f}" for n, t in times.items() if n != "rnnkern"
                )
                text.append(f"{kind} {ours:10.2f}{ratios}")
            print("  ".join(text), flush=True)
    if options.json:
        report = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "processor": processor(),
            "isa": _core.isa(),
            "threads": 1,
            "block": BLOCK,
            "lines": lines,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

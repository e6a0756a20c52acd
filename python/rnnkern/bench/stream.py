# SPDX-License-Identifier: Apache-2.0
"""One step at a time, and a block of steps, against the peers: B = 1, I = H, float32.

rnnkern's ``stream().step``, PyTorch's cell modules, ONNX Runtime with T = 1 and the state handed
on, all called from Python. With narrower weights the answer is another one: it is not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.bench.case import Case, Contender, compare, make_case, tolerance
from rnnkern.bench.onnx_peer import onnxruntime_session
from rnnkern.bench.problems import Problem
from rnnkern.bench.report import Line, duration, table
from rnnkern.bench.timing import alternate
from rnnkern.bench.torch_peer import KINDS, torch_module

HIDDEN = (16, 32, 64, 128, 256, 512, 1024)
SHORT_HIDDEN = (64, 256)
BLOCK = 512
_COMPARED = 9  # steps whose outputs are compared

Step = Callable[[Array], Array]


def rnnkern_step(case: Case, weights: str | None = None) -> Step:
    """Ours, perhaps with narrower weights."""
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
    module = torch_module(case)
    if isinstance(module, str):
        return module
    import torch

    hidden = case.problem.hidden
    cell: Any = getattr(torch.nn, f"{KINDS[case.problem.cell].layer}Cell")(hidden, hidden)
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


def measure(cell: str, hidden: int, seconds: float) -> dict[str, Any]:
    """One cell and size: a step and a block of steps, and how many times the peers' speed.

    Args:
        cell: A name out of ``rnnkern.cells.CELLS``.
        hidden: H and I.
        seconds: To spend on each contender, about.

    Raises:
        DisagreementError: a peer gave another answer.

    """
    problem = Problem(cell, 1, BLOCK, hidden, training=False)
    case = make_case(problem)
    steps, absent = {"rnnkern": rnnkern_step(case)}, {}
    for name, found in (("onnxruntime", onnxruntime_step(case)), ("torch", torch_step(case))):
        if isinstance(found, str):
            absent[name] = found
        else:
            steps[name] = found
    x = case.x[0]
    calls = {name: _bound(step, x) for name, step in steps.items()}
    compare(
        [Contender(name, calls[name], _outputs(step, case.x)) for name, step in steps.items()],
        tolerance(problem),
    )
    for weights in ("bfloat16", "int8"):
        calls[f"{weights} weights"] = _bound(rnnkern_step(case, weights), x)
    stream = case.layer.stream()
    blocks: dict[str, Callable[[], object]] = {"rnnkern": lambda: stream.block(case.x)}
    session = onnxruntime_session(case, threads=1)
    if not isinstance(session, str):
        blocks["onnxruntime"] = lambda: session.run(None, {"x": case.x})
    return {
        "cell": cell,
        "hidden": hidden,
        "step_ms": {n: s.median * 1e3 for n, s in alternate(calls, seconds).items()},
        "block_ms": {n: s.median * 1e3 for n, s in alternate(blocks, seconds).items()},
        "absent": absent,
    }


def stream_table(lines: list[Line]) -> str:
    """Our time for each cell and size, and the peers' over it."""

    def ratios(times: dict[str, float]) -> str:
        ours = times["rnnkern"]
        return ", ".join(f"{n} {t / ours:.2f}" for n, t in times.items() if n != "rnnkern")

    return table(
        ["cell", "H", "step", "times over it", f"block of {BLOCK}", "times over it"],
        [
            [
                line["cell"],
                str(line["hidden"]),
                duration(line["step_ms"]["rnnkern"] / 1e3),
                ratios(line["step_ms"]),
                duration(line["block_ms"]["rnnkern"] / 1e3),
                ratios(line["block_ms"]),
            ]
            for line in lines
        ],
    )


def _bound(step: Step, x: Array) -> Callable[[], object]:
    return lambda: step(x)


def _outputs(step: Step, x: Array) -> Callable[[], list[Array]]:
    return lambda: [np.concatenate([step(x_t).copy() for x_t in x[:_COMPARED]])]

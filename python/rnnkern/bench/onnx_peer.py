# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime as a peer: which cells its operators have, and our parameters as they hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.bench.case import Case, Contender
from rnnkern.cells import CELLS


@dataclass(frozen=True)
class _Kind:
    """An operator.

    Attributes:
        operator: Its name.
        gates: Ours in its order.
        negated: Our gate that is 1 minus theirs, so that its rows change sign.
        own_bias: Whether the last gate's recurrent product has a bias of its own.
        states: What it hands from step to step.
        attributes: That make it this cell.

    """

    operator: str
    gates: tuple[str, ...]
    negated: str | None = None
    own_bias: bool = False
    states: tuple[str, ...] = ("h",)
    attributes: dict[str, int] = field(default_factory=dict)


# By our names; ONNX has no other cell.
KINDS = {
    "rnn": _Kind("RNN", ("h",)),
    "gru": _Kind("GRU", ("u", "r", "n"), "u", attributes={"linear_before_reset": 0}),
    "gru-after": _Kind(
        "GRU", ("u", "r", "n"), "u", own_bias=True, attributes={"linear_before_reset": 1}
    ),
    "lstm": _Kind("LSTM", ("u", "o", "f", "n"), states=("h", "c")),
}


def onnx_model(case: Case, *, stateful: bool = False) -> bytes | str:
    """The fused operator as a model's bytes, or why there is none.

    A stateful one takes one step and the state beside x, and gives the next state beside y.
    """
    problem = case.problem
    if problem.cell not in KINDS:
        return "has no such cell"
    if (problem.compute or problem.dtype) != "float32":
        return "computes these operators in float32 alone"
    if problem.layers > 1:
        return "has no stacked layers"
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return "has no model, for the onnx package is not installed"
    steps, batch, hidden = case.x.shape
    kind, directions = KINDS[problem.cell], problem.directions
    ours = CELLS[problem.cell].layer.gates
    weights: dict[str, list[Array]] = {"W": [], "R": [], "B": []}

    def rows(array: Array) -> Array:
        blocks = array.reshape(len(ours), hidden, *array.shape[1:])
        by_gate = dict(zip(ours, blocks, strict=True))
        return np.concatenate(
            [-by_gate[g] if g == kind.negated else by_gate[g] for g in kind.gates]
        )

    for end in ("l0", "l0_reverse")[:directions]:
        p = case.layer.params
        bias_hh = np.zeros_like(p[f"bias_{end}"])
        if kind.own_bias:
            bias_hh[-hidden:] = p[f"bias_hn_{end}"]
        weights["W"].append(rows(p[f"weight_ih_{end}"]))
        weights["R"].append(rows(p[f"weight_hh_{end}"]))
        weights["B"].append(np.concatenate([rows(p[f"bias_{end}"]), bias_hh]))
    attributes: dict[str, Any] = {"hidden_size": hidden, **kind.attributes}
    if problem.bidirectional:
        attributes["direction"] = "bidirectional"
    states = [f"{state}_{end}" for end in ("0", "n") for state in kind.states] if stateful else []
    given, left = states[: len(states) // 2], states[len(states) // 2 :]
    steps = 1 if stateful else steps
    lengths = "lengths" if problem.ragged else ""
    node = helper.make_node(
        kind.operator,
        ["x", "W", "R", "B", lengths, *given],
        ["y", *left],
        **attributes,
    )

    def value(name: str, *shape: int) -> Any:
        dtype = TensorProto.INT32 if name == "lengths" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, dtype, shape)

    inputs = [value("x", steps, batch, hidden), *(value(s, 1, batch, hidden) for s in given)]
    graph = helper.make_graph(
        [node],
        "layer",
        inputs + ([value("lengths", batch)] if lengths else []),
        [value("y", steps, directions, batch, hidden), *(value(s, 1, batch, hidden) for s in left)],
        [numpy_helper.from_array(np.stack(arrays), name) for name, arrays in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def onnxruntime_session(case: Case, threads: int, *, stateful: bool = False) -> Any:
    """A session of ONNX Runtime's fused operator, or why there is none; as ``onnx_model``."""
    model = onnx_model(case, stateful=stateful)
    if isinstance(model, str):
        return model
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        return "is not installed"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnxruntime_contender(case: Case, threads: int) -> Contender | str:
    """ONNX Runtime's fused operators, or why they cannot do it."""
    if case.problem.training:
        return "does not train"
    session = onnxruntime_session(case, threads)
    if isinstance(session, str):
        return session
    feed = feeds(case)

    def work() -> Array:
        y: Array = session.run(None, feed)[0]
        return y

    return Contender("onnxruntime", work, lambda: [as_ours(work())])


def feeds(case: Case) -> dict[str, Array]:
    """What a model without states is given."""
    feed = {"x": case.x}
    if case.lengths is not None:
        feed["lengths"] = case.lengths.astype(np.int32)
    return feed


def as_ours(y: Array) -> Array:
    """The operators' y (T, D, B, H) as (T, B, D·H)."""
    y = y.transpose(0, 2, 1, 3)
    return y.reshape(*y.shape[:2], -1)

# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on random problems: every cell and direction it has, by rnnkern and reference.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from support.compare import assert_close
from support.layers import forward_by, random_state
from support.onnx_weights import from_onnx
from support.reference import Array

ort = pytest.importorskip("onnxruntime")

OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"activations": "Relu"}),
    "gru_before": ("GRU", {"linear_before_reset": 0}),
    "gru_after": ("GRU", {"linear_before_reset": 1}),
    "lstm": ("LSTM", {}),
}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def run_onnxruntime(
    op: str, attributes: dict[str, Any], inputs: dict[str, Array], outputs: list[str]
) -> list[Array]:
    """One node, its inputs by their ONNX names."""
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c"]
    present = [name if name in inputs else "" for name in order[: 7 if op == "LSTM" else 6]]
    node = helper.make_node(op, present, outputs, **attributes)
    graph = helper.make_graph(
        [node],
        "recurrent",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in inputs.items()
        ],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[Array] = session.run(outputs, inputs)
    return results


@pytest.mark.parametrize("implementation", ["reference", "rnnkern"])
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("with_state", [False, True], ids=["from-zero", "from-state"])
@pytest.mark.parametrize("direction", list(DIRECTIONS))
@pytest.mark.parametrize("cell", list(OPERATORS))
def test_random_problem(
    cell: str, direction: str, with_state: bool, ragged: bool, implementation: str
) -> None:
    steps, batch, inputs, hidden = 9, 5, 6, 11
    op, attributes = OPERATORS[cell]
    directions, gates = DIRECTIONS[direction], GATES[op]
    if "activations" in attributes:
        attributes = {"activations": [attributes["activations"]] * directions}
    rng = np.random.default_rng(7)

    def draw(*shape: int) -> Array:
        drawn: Array = rng.standard_normal(shape) / np.sqrt(shape[-1])
        return drawn.astype(np.float32)

    x = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    w = draw(directions, gates * hidden, inputs)
    r = draw(directions, gates * hidden, hidden)
    b = draw(directions, 2 * gates * hidden)
    lengths = np.array([4, 9, 1, 7, 9], dtype=np.int32)
    state = random_state(cell, (directions, batch, hidden), seed=8)
    state = tuple(s.astype(np.float32) for s in state)

    feed = {"X": x, "W": w, "R": r, "B": b}
    if ragged:
        feed["sequence_lens"] = lengths
    if with_state:
        feed |= dict(zip(("initial_h", "initial_c"), state, strict=False))
    names = ["Y", "Y_h", "Y_c"] if op == "LSTM" else ["Y", "Y_h"]
    want_y, *want_state = run_onnxruntime(
        op, {"hidden_size": hidden, "direction": direction, **attributes}, feed, names
    )

    reverse = direction == "reverse"
    params = from_onnx(op, w, r, b, linear_before_reset=cell == "gru_after")
    y, last = forward_by(
        implementation,
        cell,
        params,
        x,
        state if with_state else None,
        lengths if ragged else None,
        reverse=reverse,
    )
    # Theirs is (T, D, B, H), ours (T, B, D*H).
    want_y = want_y.transpose(0, 2, 1, 3).reshape(y.shape)
    assert_close("Y", y, want_y, 2e-6)
    for name, got, want in zip(names[1:], last, want_state, strict=True):
        assert_close(name, got, want, 2e-6)

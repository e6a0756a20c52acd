# SPDX-License-Identifier: Apache-2.0
"""ONNX's own node tests for RNN, GRU and LSTM: all eighteen, by rnnkern and by reference.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from support.layers import forward_by
from support.onnx_models import node_tests
from support.onnx_weights import from_onnx

NAMES = [
    "test_simple_rnn_defaults",
    "test_simple_rnn_with_initial_bias",
    "test_simple_rnn_batchwise",
    "test_simple_rnn_reverse",
    "test_simple_rnn_bidirectional",
    "test_rnn_seq_length",
    "test_gru_defaults",
    "test_gru_with_initial_bias",
    "test_gru_seq_length",
    "test_gru_batchwise",
    "test_gru_reverse",
    "test_gru_bidirectional",
    "test_lstm_defaults",
    "test_lstm_with_initial_bias",
    "test_lstm_with_peepholes",
    "test_lstm_batchwise",
    "test_lstm_reverse",
    "test_lstm_bidirectional",
]
# What the reference has not; tests/interop/test_onnx_in.py reads it.
INEXPRESSIBLE = {"test_lstm_with_peepholes": "the reference's LSTM has no peepholes"}


def values(case: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The operator, its attributes, and its inputs and outputs by name."""
    (node,) = case.model.graph.node
    ((inputs, outputs),) = case.data_sets
    named = dict(zip(filter(None, node.input), inputs, strict=True))
    named |= dict(zip(filter(None, node.output), outputs, strict=True))
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return node.op_type, attributes, named


def test_all_eighteen_are_found() -> None:
    assert len(NAMES) == 18
    assert sorted(node_tests()) == sorted(NAMES)


def test_only_peepholes_are_left_out() -> None:
    left_out = {name for name in NAMES if np.any(values(node_tests()[name])[2].get("P", 0.0))}
    assert left_out == set(INEXPRESSIBLE)


@pytest.mark.parametrize("implementation", ["reference", "rnnkern"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in INEXPRESSIBLE])
def test_node(name: str, implementation: str) -> None:
    case = node_tests()[name]
    op, attributes, named = values(case)
    understood = {"hidden_size", "direction", "layout", "linear_before_reset"}
    assert attributes.keys() <= understood, "an attribute that this test would ignore"
    assert named.keys() <= {"X", "W", "R", "B", "Y", "Y_h", "Y_c"}

    reset_after = bool(attributes.get("linear_before_reset", 0))
    cell = {"RNN": "rnn_tanh", "GRU": "gru_after" if reset_after else "gru_before", "LSTM": "lstm"}
    w, r, b = named["W"], named["R"], named.get("B")
    reverse = attributes.get("direction") == b"reverse"
    batch_first = attributes.get("layout", 0) == 1
    x = named["X"].swapaxes(0, 1) if batch_first else named["X"]

    params = from_onnx(op, w, r, b, linear_before_reset=reset_after)
    y, state = forward_by(implementation, cell[op], params, x, reverse=reverse)

    directions = len(w)
    got = {
        "Y": y.reshape(*y.shape[:2], directions, -1).transpose(0, 2, 1, 3),  # (T, D, B, H)
        **dict(zip(("Y_h", "Y_c"), state, strict=False)),
    }
    if batch_first:
        got = {k: v.transpose(2, 0, 1, 3) if k == "Y" else v.swapaxes(0, 1) for k, v in got.items()}

    checked = named.keys() & got.keys()
    assert "Y_h" in checked
    for output in checked:
        np.testing.assert_allclose(got[output], named[output], rtol=1e-5, atol=1e-6, strict=False)
        assert got[output].shape == named[output].shape

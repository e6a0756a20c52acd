# SPDX-License-Identifier: Apache-2.0
"""Small ONNX models, and what ONNX Runtime makes of them."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

import rnnkern as rk

from support.compare import assert_close
from support.reference import Array

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
INPUTS = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]


@cache
def node_tests() -> dict[str, Any]:
    """ONNX's own tests of the three operators, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the cases of other operators overflows on purpose
        everything = load_model_tests(kind="node")
    return {
        case.name: case
        for case in everything
        if case.model and case.model.graph.node[0].op_type in GATES
    }


def node_model(op: str, arrays: dict[str, Array], **attributes: Any) -> bytes:
    """A model of one node, whose W, R, B and P are the file's."""
    names = INPUTS if op == "LSTM" else INPUTS[:6]
    given = [name if name in arrays else "" for name in names]
    while not given[-1]:
        given.pop()
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    return model(
        [helper.make_node(op, given, outputs, **attributes)],
        {k: v for k, v in arrays.items() if k not in "WRBP"},
        outputs,
        {k: v for k, v in arrays.items() if k in "WRBP"},
    )


def model(
    nodes: list[Any],
    inputs: dict[str, Array],
    outputs: list[str],
    constants: dict[str, Array] | None = None,
    opset: int = 17,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(
                n, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim
            )
            for n, a in inputs.items()
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content


def run(content: bytes, feeds: dict[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime gives, by name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def agree(content: bytes, feeds: dict[str, Array], tolerance: float = 3e-6) -> rk.OnnxModel:
    """The model, which gives what ONNX Runtime gives."""
    read = rk.from_onnx(content)
    got, want = read(feeds), run(content, feeds)
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert_close(name, got[name], array, tolerance)
    return read

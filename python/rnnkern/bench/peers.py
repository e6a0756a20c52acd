# SPDX-License-Identifier: Apache-2.0
"""rnnkern and its peers as callables that do the same work on the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern._checks import Array
from rnnkern.bench import native
from rnnkern.bench.problems import Problem

_LAYERS: dict[str, tuple[type[Any], dict[str, str]]] = {
    "rnn": (rk.RNN, {}),
    "simplified_gru": (rk.SimplifiedGRU, {}),
    "gru_before": (rk.GRU, {"reset": "before"}),
    "gru_after": (rk.GRU, {"reset": "after"}),
    "lstm": (rk.LSTM, {}),
}

# Norm-wise relative error allowed between two answers, by how the products are done.
_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2}


class DisagreementError(ArithmeticError):
    """A contender gave another answer than rnnkern: its time would mean nothing."""


@dataclass(frozen=True)
class Case:
    """A problem's numbers: the layer whose parameters the peers take over, input and gradient."""

    problem: Problem
    layer: Any
    x: Array
    dy: Array
    lengths: Array | None


@dataclass(frozen=True)
class Contender:
    """``run`` does the work once; ``answer`` is y, and dx when training, to be compared."""

    name: str
    run: Callable[[], object]
    answer: Callable[[], list[Array]]


def make_case(problem: Problem) -> Case:
    """The same numbers for the same problem; raises as ``make_layer``."""
    random = np.random.default_rng(0)
    x, dy = (
        random.standard_normal((problem.steps, problem.batch, features)).astype(problem.dtype)
        for features in (problem.hidden, problem.hidden * problem.directions)
    )
    return Case(problem, make_layer(problem), x, dy, problem.lengths())


def make_layer(problem: Problem) -> Any:
    """The layer of a problem.

    Raises:
        ValueError: rnnkern cannot do it.

    """
    kind, options = _LAYERS[problem.cell]
    return kind(
        problem.hidden,
        problem.hidden,
        problem.layers,
        bidirectional=problem.bidirectional,
        dtype=problem.dtype,
        compute=problem.compute,
        seed=0,
        **options,
    )


def contenders(case: Case, threads: int) -> tuple[list[Contender], dict[str, str]]:
    """All that can do a case, this package first; and why the others cannot."""
    able, absent = [rnnkern_contender(case)], {}
    for name, found in (
        ("torch", torch_contender(case)),
        ("onnxruntime", onnxruntime_contender(case, threads)),
        *((name, native_contender(case, name, threads)) for name in native.LIBRARIES),
    ):
        if isinstance(found, str):
            absent[name] = found
        else:
            able.append(found)
    return able, absent


def compare(able: list[Contender], tolerance: float) -> None:
    """Hold all answers against the first one's.

    Raises:
        DisagreementError: one is further from it than the norm-wise relative ``tolerance``, or NaN.

    """
    wanted = able[0].answer()
    for contender in able[1:]:
        for want, got in zip(wanted, contender.answer(), strict=True):
            error = relative_error(got, want)
            if not error <= tolerance:
                raise DisagreementError(
                    f"{contender.name} disagrees with {able[0].name}: relative error {error:.2g}, "
                    f"expected at most {tolerance:g}"
                )


def relative_error(got: Array, want: Array) -> float:
    """Of norms; infinite where the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def tolerance(problem: Problem) -> float:
    """What ``compare`` may allow between answers to a problem."""
    return _TOLERANCE[problem.compute or problem.dtype]


def rnnkern_contender(case: Case) -> Contender:
    """The layer itself; for inference frozen, as ONNX Runtime and oneDNN too pack weights once."""
    layer = case.layer if case.problem.training else case.layer.freeze()

    def infer() -> list[Array]:
        return [layer(case.x, None, case.lengths)[0]]

    def train() -> list[Array]:
        y, _, tape = layer.forward(case.x, None, case.lengths)
        return [y, tape.backward(case.dy)[0]]

    work = train if case.problem.training else infer
    return Contender("rnnkern", work, work)


def torch_module(case: Case) -> Any:
    """PyTorch's fused layer with the case's parameters, or why there is none."""
    problem = case.problem
    if problem.cell in ("simplified_gru", "gru_before"):
        return "has no such cell"
    try:
        import torch
    except ImportError:
        return "is not installed"
    kind = {"rnn": torch.nn.RNN, "gru_after": torch.nn.GRU, "lstm": torch.nn.LSTM}[problem.cell]
    hidden, params = problem.hidden, case.layer.params
    module: Any = kind(
        hidden,
        hidden,
        problem.layers,
        bidirectional=problem.bidirectional,
        dtype=getattr(torch, problem.dtype),
    )
    with torch.no_grad():
        for name, target in module.named_parameters():
            target.copy_(torch.from_numpy(_as_torch(problem.cell, hidden, params, name)))
    return module if problem.compute is None else module.to(getattr(torch, problem.compute))


def _as_torch(cell: str, hidden: int, params: dict[str, Array], name: str) -> Array:
    """A parameter of ours by PyTorch's name, which has two biases, as PyTorch holds it."""
    if name.startswith("bias_hh"):
        array: Array = np.zeros_like(params[name.replace("bias_hh", "bias")])
        if cell == "gru_after":
            array[2 * hidden :] = params[name.replace("bias_hh", "bias_hn")]
        return array
    array = params[name.replace("bias_ih", "bias")].copy()
    if cell == "gru_after":
        # Their z is 1 - u: the update rows change sign, and sigma(-a) = 1 - sigma(a).
        array[hidden : 2 * hidden] *= -1
    return array


def torch_contender(case: Case) -> Contender | str:
    """PyTorch's fused layers, or why they cannot do it."""
    module = torch_module(case)
    if isinstance(module, str):
        return module
    import torch

    kind = getattr(torch, case.problem.compute or case.problem.dtype)
    x = torch.from_numpy(case.x).to(kind).requires_grad_(case.problem.training)
    dy = torch.from_numpy(case.dy).to(kind)
    lengths = None if case.lengths is None else torch.from_numpy(case.lengths)

    def forward() -> Any:
        if lengths is None:
            return module(x)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=len(x))[0]

    def infer() -> list[Any]:
        with torch.no_grad():
            return [forward()]

    def train() -> list[Any]:
        module.zero_grad(set_to_none=True)
        x.grad = None
        y = forward()
        y.backward(dy)
        return [y.detach(), x.grad]

    work = train if case.problem.training else infer
    dtype = getattr(torch, case.problem.dtype)
    return Contender("torch", work, lambda: [tensor.to(dtype).numpy() for tensor in work()])


# The order of our gates in ONNX's operators.
_ONNX_ORDER = {"rnn": [0], "gru_before": [1, 0, 2], "gru_after": [1, 0, 2], "lstm": [0, 3, 1, 2]}


def onnxruntime_session(case: Case, threads: int, *, stateful: bool = False) -> Any:
    """A session of ONNX Runtime's fused operator, or why there is none.

    A stateful one takes one step and the state beside x, and gives the next state beside y.
    """
    problem = case.problem
    if problem.cell == "simplified_gru":
        return "has no such cell"
    if (problem.compute or problem.dtype) != "float32":
        return "computes these operators in float32 alone"
    if problem.layers > 1:
        return "has no stacked layers"
    try:
        import onnxruntime  # type: ignore[import-untyped]
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return "is not installed"
    steps, batch, hidden = case.x.shape
    cell, directions = problem.cell, problem.directions
    weights: dict[str, list[Array]] = {"W": [], "R": [], "B": []}

    def rows(array: Array) -> Array:
        blocks = array.reshape(-1, hidden, *array.shape[1:])[_ONNX_ORDER[cell]].copy()
        if cell.startswith("gru"):
            blocks[0] *= -1  # their z is 1 - u
        shaped: Array = blocks.reshape(array.shape)
        return shaped

    for end in ("l0", "l0_reverse")[:directions]:
        p = case.layer.params
        bias_hh = np.zeros_like(p[f"bias_{end}"])
        if cell == "gru_after":
            bias_hh[2 * hidden :] = p[f"bias_hn_{end}"]
        weights["W"].append(rows(p[f"weight_ih_{end}"]))
        weights["R"].append(rows(p[f"weight_hh_{end}"]))
        weights["B"].append(np.concatenate([rows(p[f"bias_{end}"]), bias_hh]))
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if problem.bidirectional:
        attributes["direction"] = "bidirectional"
    if cell.startswith("gru"):
        attributes["linear_before_reset"] = int(cell == "gru_after")
    letters = ("h", "c") if cell == "lstm" else ("h",)
    states = [f"{letter}_{end}" for end in ("0", "n") for letter in letters] if stateful else []
    given, left = states[: len(states) // 2], states[len(states) // 2 :]
    steps = 1 if stateful else steps
    lengths = "lengths" if problem.ragged else ""
    node = helper.make_node(
        {"rnn": "RNN", "lstm": "LSTM"}.get(cell, "GRU"),
        ["x", "W", "R", "B", lengths, *given],
        ["y", *left],
        **attributes,
    )

    def value(name: str, *shape: int) -> Any:
        kind = TensorProto.INT32 if name == "lengths" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [value("x", steps, batch, hidden), *(value(s, 1, batch, hidden) for s in given)]
    graph = helper.make_graph(
        [node],
        "layer",
        inputs + ([value("lengths", batch)] if lengths else []),
        [value("y", steps, directions, batch, hidden), *(value(s, 1, batch, hidden) for s in left)],
        [numpy_helper.from_array(np.stack(arrays), name) for name, arrays in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def onnxruntime_contender(case: Case, threads: int) -> Contender | str:
    """ONNX Runtime's fused operators, or why they cannot do it."""
    if case.problem.training:
        return "does not train"
    session = onnxruntime_session(case, threads)
    if isinstance(session, str):
        return session
    feed = {"x": case.x}
    if case.lengths is not None:
        feed["lengths"] = case.lengths.astype(np.int32)

    def work() -> Array:
        y: Array = session.run(None, feed)[0]
        return y

    def answer() -> list[Array]:
        y = work().transpose(0, 2, 1, 3)  # (T, B, D, H)
        return [y.reshape(*y.shape[:2], -1)]

    return Contender("onnxruntime", work, answer)


def native_contender(case: Case, name: str, threads: int) -> Contender | str:
    """A C++ library through its adapter, or why it cannot do it."""
    problem = case.problem
    if (problem.compute or problem.dtype) != "float32":
        return "is measured in float32 alone"
    if problem.ragged or problem.layers > 1 or problem.bidirectional:
        return "is measured on one layer, one direction and whole batches"
    network = native.network(name, case.layer, problem, threads)
    if isinstance(network, str):
        return network

    def work() -> list[Array]:
        return network.run(case.x, case.dy)

    return Contender(name, work, work)

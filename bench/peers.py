"""rnnkern and its peers as callables that do the same work on the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from problems import Problem

import rnnkern as rk

Array = NDArray[Any]


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
    """The same numbers for the same problem."""
    random = np.random.default_rng(0)
    kinds: dict[str, Callable[..., Any]] = {
        "rnn": rk.RNN,
        "simplified_gru": rk.SimplifiedGRU,
        "gru_before": lambda *a, **k: rk.GRU(*a, reset="before", **k),
        "gru_after": lambda *a, **k: rk.GRU(*a, reset="after", **k),
        "lstm": rk.LSTM,
    }
    shape = (problem.steps, problem.batch, problem.hidden)
    lengths = random.integers(1, problem.steps + 1, problem.batch) if problem.ragged else None
    return Case(
        problem,
        kinds[problem.cell](problem.hidden, problem.hidden, seed=0),
        random.standard_normal(shape, dtype=np.float32),
        random.standard_normal(shape, dtype=np.float32),
        lengths,
    )


def rnnkern_contender(case: Case) -> Contender:
    """This package."""

    def infer() -> list[Array]:
        return [case.layer(case.x, None, case.lengths)[0]]

    def train() -> list[Array]:
        y, _, tape = case.layer.forward(case.x, None, case.lengths)
        return [y, tape.backward(case.dy)[0]]

    work = train if case.problem.training else infer
    return Contender("rnnkern", work, work)


def torch_module(case: Case) -> Any:
    """PyTorch's fused layer with the case's parameters, or why there is none."""
    if case.problem.cell in ("simplified_gru", "gru_before"):
        return "PyTorch has no such cell"
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    hidden = case.problem.hidden
    kind = {"rnn": torch.nn.RNN, "gru_after": torch.nn.GRU, "lstm": torch.nn.LSTM}
    module: Any = kind[case.problem.cell](hidden, hidden)
    p = {name: array.copy() for name, array in case.layer.params.items()}
    bias_hh = np.zeros_like(p["bias_l0"])
    if case.problem.cell == "gru_after":
        # Their z is 1 - u: the update rows change sign, and sigma(-a) = 1 - sigma(a).
        bias_hh[2 * hidden :] = p["bias_hn_l0"]
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_l0"):
            p[name][hidden : 2 * hidden] *= -1
    with torch.no_grad():
        for name, array in (
            ("weight_ih_l0", p["weight_ih_l0"]),
            ("weight_hh_l0", p["weight_hh_l0"]),
            ("bias_ih_l0", p["bias_l0"]),
            ("bias_hh_l0", bias_hh),
        ):
            getattr(module, name).copy_(torch.from_numpy(array))
    return module


def torch_contender(case: Case) -> Contender | str:
    """PyTorch's fused layers, or why they cannot do it."""
    module = torch_module(case)
    if isinstance(module, str):
        return module
    import torch

    x = torch.from_numpy(case.x).requires_grad_(case.problem.training)
    dy = torch.from_numpy(case.dy)
    lengths = None if case.lengths is None else torch.from_numpy(case.lengths)

    def forward() -> Any:
        if lengths is None:
            return module(x)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=len(x))[0]

    def infer() -> list[Array]:
        with torch.no_grad():
            return [forward().numpy()]

    def train() -> list[Array]:
        module.zero_grad(set_to_none=True)
        x.grad = None
        y = forward()
        y.backward(dy)
        assert x.grad is not None
        return [y.detach().numpy(), x.grad.numpy()]

    work = train if case.problem.training else infer
    return Contender("torch", work, work)


def onnxruntime_session(case: Case, threads: int, *, stateful: bool = False) -> Any:
    """A session of ONNX Runtime's fused operator, or why there is none.

    A stateful one takes one step and the state beside x, and gives the next state beside y.
    """
    if case.problem.cell == "simplified_gru":
        return "ONNX Runtime has no such cell"
    try:
        import onnxruntime  # type: ignore[import-untyped]
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return "ONNX Runtime is not installed"
    steps, batch, hidden = case.x.shape
    p, cell = case.layer.params, case.problem.cell
    order = {"rnn": [0], "gru_before": [1, 0, 2], "gru_after": [1, 0, 2], "lstm": [0, 3, 1, 2]}[
        cell
    ]

    def rows(array: Array) -> Array:
        blocks = array.reshape(-1, hidden, *array.shape[1:])[order].copy()
        if cell.startswith("gru"):
            blocks[0] *= -1  # their z is 1 - u
        shaped: Array = blocks.reshape(array.shape)
        return shaped

    bias_hh = np.zeros_like(p["bias_l0"])
    if cell == "gru_after":
        bias_hh[2 * hidden :] = p["bias_hn_l0"]
    weights = {
        "W": rows(p["weight_ih_l0"])[None],
        "R": rows(p["weight_hh_l0"])[None],
        "B": np.concatenate([rows(p["bias_l0"]), bias_hh])[None],
    }
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if cell.startswith("gru"):
        attributes["linear_before_reset"] = int(cell == "gru_after")
    letters = ("h", "c") if cell == "lstm" else ("h",)
    states = [f"{letter}_{end}" for end in ("0", "n") for letter in letters] if stateful else []
    given, left = states[: len(states) // 2], states[len(states) // 2 :]
    steps = 1 if stateful else steps
    node = helper.make_node(
        {"rnn": "RNN", "lstm": "LSTM"}.get(cell, "GRU"),
        ["x", "W", "R", "B", *([""] if stateful else []), *given],
        ["y", *left],
        **attributes,
    )

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        "layer",
        [value("x", steps, batch, hidden), *(value(s, 1, batch, hidden) for s in given)],
        [value("y", steps, 1, batch, hidden), *(value(s, 1, batch, hidden) for s in left)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
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
        return "ONNX Runtime does not train"
    session = onnxruntime_session(case, threads)
    if isinstance(session, str):
        return session

    def work() -> list[Array]:
        return [session.run(None, {"x": case.x})[0][:, 0]]

    return Contender("onnxruntime", work, work)

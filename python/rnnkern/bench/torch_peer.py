# SPDX-License-Identifier: Apache-2.0
"""PyTorch as a peer: which cells it has, and our parameters as it holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkern import _core, set_num_threads
from rnnkern._checks import Array
from rnnkern.bench.case import Case, Contender
from rnnkern.cells import CELLS


@dataclass(frozen=True)
class _Kind:
    """A cell of PyTorch's.

    Attributes:
        layer: The class in ``torch.nn``; that of a single step ends in ``Cell``.
        negated: Our gate that is 1 minus theirs, so that its rows change sign.
        own_bias: Whether the last gate's recurrent product has a bias of its own.

    """

    layer: str
    negated: str | None = None
    own_bias: bool = False


# By our names; PyTorch has no other cell.
KINDS = {
    "rnn": _Kind("RNN"),
    "gru-after": _Kind("GRU", negated="u", own_bias=True),
    "lstm": _Kind("LSTM"),
}


def torch_module(case: Case) -> Any:
    """PyTorch's fused layer with the case's parameters, or why there is none."""
    problem = case.problem
    if problem.cell not in KINDS:
        return "has no such cell"
    try:
        import torch
    except ImportError:
        return "is not installed"
    hidden, params = problem.hidden, case.layer.params
    module: Any = getattr(torch.nn, KINDS[problem.cell].layer)(
        hidden,
        hidden,
        problem.layers,
        bidirectional=problem.bidirectional,
        dtype=getattr(torch, problem.dtype),
    )
    with torch.no_grad():
        for name, target in module.named_parameters():
            target.copy_(torch.from_numpy(as_torch(problem.cell, params, name)))
    return module if problem.compute is None else module.to(getattr(torch, problem.compute))


def as_torch(cell: str, params: Mapping[str, Array], name: str) -> Array:
    """A layer's parameter by PyTorch's name, which has two biases, as PyTorch holds it."""
    if "bias_hh" in name:
        array: Array = np.zeros_like(params[name.replace("bias_hh", "bias")])
        if KINDS[cell].own_bias:
            _by_gate(cell, array)[-1] = params[name.replace("bias_hh", "bias_hn")]
        return array
    return negated(cell, params[name.replace("bias_ih", "bias")])


def from_torch(cell: str, theirs: Mapping[str, Array]) -> dict[str, Array]:
    """PyTorch's gradients of a layer by our names: the inverse of ``as_torch``."""
    ours = {}
    for name, array in theirs.items():
        if "bias_hh" not in name:
            ours[name.replace("bias_ih", "bias")] = negated(cell, array)
        elif KINDS[cell].own_bias:
            ours[name.replace("bias_hh", "bias_hn")] = _by_gate(cell, array)[-1]
    return ours


def negated(cell: str, array: Array) -> Array:
    """A copy in which the gate that is 1 minus theirs has its sign changed: σ(-a) = 1 - σ(a)."""
    copy: Array = array.copy()
    gate = KINDS[cell].negated
    if gate is not None:
        _by_gate(cell, copy)[CELLS[cell].layer.gates.index(gate)] *= -1
    return copy


def _by_gate(cell: str, array: Array) -> Array:
    """A view with an axis for the gates."""
    return array.reshape(len(CELLS[cell].layer.gates), -1)


def torch_contender(case: Case, *, padded: bool = False) -> Contender | str:
    """PyTorch's fused layers, or why they cannot do it.

    A ragged batch is packed, or computed whole with what lies past the rows' ends set to zero.
    """
    module = torch_module(case)
    if isinstance(module, str):
        return module
    if padded and case.problem.bidirectional:
        return "would begin the second direction in the padding"
    import torch

    kind = getattr(torch, case.problem.compute or case.problem.dtype)
    x = torch.from_numpy(case.x).to(kind).requires_grad_(case.problem.training)
    dy = torch.from_numpy(case.dy).to(kind)
    lengths = None if case.lengths is None else torch.from_numpy(case.lengths)
    live = None if lengths is None else (torch.arange(len(x))[:, None] < lengths)[..., None]

    def forward() -> Any:
        if lengths is None:
            return module(x)[0]
        if padded:
            return module(x)[0] * live
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=len(x))[0]

    def infer() -> list[Any]:
        with torch.inference_mode():
            return [forward()]

    def train() -> list[Any]:
        module.zero_grad(set_to_none=True)
        x.grad = None
        y = forward()
        y.backward(dy)
        return [y.detach(), x.grad]

    work = train if case.problem.training else infer
    dtype = getattr(torch, case.problem.dtype)

    def answer() -> list[Array]:
        seen = [tensor.to(dtype).numpy() for tensor in work()]
        if not case.problem.training:
            return seen
        theirs = {n: p.grad.to(dtype).numpy() for n, p in module.named_parameters()}
        ours = from_torch(case.problem.cell, theirs)
        return [*seen, *(ours[name] for name in case.layer.params)]

    return Contender("torch padded" if padded else "torch", work, answer)


def set_peer_threads(threads: int) -> None:
    """Of this package and of PyTorch, where it is installed."""
    set_num_threads(threads)
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(threads)


@contextmanager
def peer_threads(threads: int) -> Iterator[None]:
    """Within, so many of this package and of PyTorch; both have theirs back afterwards."""
    torch = _torch()
    before, of_torch = _core.process_threads(), torch and torch.get_num_threads()
    set_peer_threads(threads)
    try:
        yield
    finally:
        _core.set_process_threads(before)
        if torch is not None:
            torch.set_num_threads(of_torch)


def _torch() -> Any:
    """PyTorch, or None."""
    try:
        import torch
    except ImportError:
        return None
    return torch

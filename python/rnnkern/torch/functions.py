# SPDX-License-Identifier: Apache-2.0
"""Calls as PyTorch's autograd and its compiler see them.

In eager mode a call is a `torch.autograd.Function`, whose context keeps the tape. Compiled or
exported it is the custom operator ``rnnkern::forward``, and its gradient ``rnnkern::backward``:
operators of tensors alone, which cost more, since PyTorch takes their arguments apart in Python.
What stands for the tape there is a tensor of one number, whose memory owns the tape.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from rnnkern.layers.tape import Tape
from rnnkern.torch.calls import TWO_STATES, Spec, Twin, back, call

Needed = tuple[bool, bool, bool]  # the gradients of x, h and c
_TWICE = (
    "rnnkern has first derivatives alone: a gradient of a gradient through its layers needs "
    "torch.nn's own modules"
)


def run(
    spec: Spec, x: Any, h: Any, c: Any, weights: Sequence[Any], lengths: Any, *, training: bool
) -> tuple[Any, Any, Any]:
    """Y (T, B, D·H), last h and, of cells that have it, c; of tensors time first and batched."""
    drops = training and spec.dropout > 0.0 and spec.layers > 1
    key = torch.randint(1 << 62, (), dtype=torch.int64) if drops else None
    if spec.dropout and not drops:
        spec = spec._replace(dropout=0.0)
    if torch.compiler.is_compiling():
        return _compiled(spec, x, h, c, weights, lengths, key, training=training)
    recorded = torch.is_grad_enabled() and (
        weights[0].requires_grad
        or any(t is not None and t.requires_grad for t in (x, h, c, *weights))
    )
    number = None if key is None else int(key)
    if not recorded:
        result = call(spec, x, h, c, weights, lengths, number, keep=drops)
        return result.y, result.h, result.c
    y, h_n, c_n = _Recurrent.apply((spec, lengths, number), x, h, c, *weights)
    return y, h_n, c_n


# -- eager ----------------------------------------------------------------------------------------


class _Recurrent(torch.autograd.Function):  # type: ignore[misc]
    """A layer's forward and backward pass."""

    @staticmethod
    def forward(
        ctx: Any, rest: tuple[Spec, Any, int | None], x: Any, h: Any, c: Any, *weights: Any
    ) -> tuple[Any, Any, Any]:
        spec, lengths, key = rest
        result = call(spec, x, h, c, weights, lengths, key, keep=True)
        ctx.tape, ctx.twin = result.tape, result.twin
        ctx.weights = weights
        # So that PyTorch notices what is written to them.
        given = (
            (x, result.y) if h is None else (x, result.y, h) if c is None else (x, result.y, h, c)
        )
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        return result.y, result.h, result.c

    @staticmethod
    def backward(ctx: Any, dy: Any, dh: Any, dc: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # it raises if one was written to
        needed = ctx.needs_input_grad[1:4]
        if torch.is_grad_enabled():
            dx, dh_0, dc_0, *grads = _Once.apply(
                (ctx.tape, ctx.twin, needed), dy, dh, dc, *saved, *ctx.weights
            )
        else:
            dx, dh_0, dc_0, grads = _back(ctx.tape, ctx.twin, needed, dy, dh, dc)
        return None, dx, dh_0, dc_0, *grads


def _back(
    tape: Tape, twin: Twin, needed: Needed, dy: Any, dh: Any, dc: Any
) -> tuple[Any, Any, Any, list[Any]]:
    of_x, of_h, of_c = needed
    return back(tape, twin, dy, dh, dc, of_x=of_x, of_state=of_h or of_c)


class _Once(torch.autograd.Function):  # type: ignore[misc]
    """A backward pass under ``create_graph``: it can be differentiated no further."""

    @staticmethod
    def forward(
        ctx: Any, rest: tuple[Tape, Twin, Needed], dy: Any, dh: Any, dc: Any, *depends_on: Any
    ) -> tuple[Any, ...]:
        dx, dh_0, dc_0, grads = _back(*rest, dy, dh, dc)
        return dx, dh_0, dc_0, *grads

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(_TWICE)


# -- compiled -------------------------------------------------------------------------------------


class _Held:
    """A tape and its layer, alive as long as their handle's memory."""

    def __init__(self, tape: Tape, twin: Twin) -> None:
        self.tape = tape
        self.twin = twin


class _Handle(NDArray[np.int64]):
    """A number whose memory owns what it stands for."""

    held: _Held


_numbers = itertools.count(1)
_held: weakref.WeakValueDictionary[int, _Held] = weakref.WeakValueDictionary()


def _handle_of(tape: Tape | None, twin: Twin) -> Any:
    """A tensor that stands for the tape, 0 for none."""
    if tape is None:
        return torch.zeros(1, dtype=torch.int64)
    number = next(_numbers)
    array = np.array([number]).view(_Handle)
    array.held = _held[number] = _Held(tape, twin)
    return torch.from_numpy(array)


def _compiled(
    spec: Spec,
    x: Any,
    h: Any,
    c: Any,
    weights: Sequence[Any],
    lengths: Any,
    key: Any,
    *,
    training: bool,
) -> tuple[Any, Any, Any]:
    # What is exported from a module in eval mode is for inference: it keeps no tapes.
    keep = training or (torch.is_grad_enabled() and not torch.compiler.is_exporting())
    y, h_n, c_n, _ = torch.ops.rnnkern.forward(
        x, h, c, list(weights), lengths, key, *_plain(spec), keep
    )
    return y, h_n, None if c_n.dim() == 1 else c_n


def _plain(spec: Spec) -> tuple[Any, ...]:
    """As an operator takes it, which knows no None among texts."""
    return tuple(spec._replace(compute=spec.compute or ""))


def _forward(
    x: Any, h: Any, c: Any, weights: Sequence[Any], lengths: Any, key: Any, *rest: Any
) -> tuple[Any, Any, Any, Any]:
    *plain, keep = rest
    spec = Spec(*plain)
    spec = spec._replace(compute=spec.compute or None)
    number = None if key is None else int(key)
    result = call(spec, x, h, c, weights, lengths, number, keep=keep or number is not None)
    c_n = result.y.new_empty(0) if result.c is None else result.c
    return result.y, result.h, c_n, _handle_of(result.tape if keep else None, result.twin)


def _forward_shapes(
    x: Any, h: Any, c: Any, weights: Sequence[Any], lengths: Any, key: Any, *rest: Any
) -> tuple[Any, Any, Any, Any]:
    spec = Spec(*rest[:-1])
    steps, batch, *_ = x.shape
    like = weights[0]
    of_h, of_c = ((spec.layers * spec.directions, batch, n) for n in (spec.outputs, spec.units))
    return (
        like.new_empty((steps, batch, spec.directions * spec.outputs)),
        like.new_empty(of_h),
        like.new_empty(of_c if spec.kind in TWO_STATES else 0),
        like.new_empty(1, dtype=torch.int64),
    )


def _backward(
    handle: Any, dy: Any, dh: Any, dc: Any, x: Any, h_n: Any, c_n: Any, weights: Sequence[Any]
) -> tuple[Any, Any, Any, list[Any]]:
    held = _held.get(int(handle))
    if held is None:
        raise RuntimeError(
            "the forward pass of an rnnkern layer has kept nothing for this backward pass: its "
            "module was exported in eval mode, or what it kept was copied"
        )
    dx, dh_0, dc_0, grads = back(held.tape, held.twin, dy, dh, dc)
    nothing = h_n.new_empty(0)
    return (
        nothing if dx is None else dx,
        dh_0,
        nothing.clone() if dc_0 is None else dc_0,
        grads,
    )


def _backward_shapes(
    handle: Any, dy: Any, dh: Any, dc: Any, x: Any, h_n: Any, c_n: Any, weights: Sequence[Any]
) -> tuple[Any, Any, Any, list[Any]]:
    return (
        h_n.new_empty(x.shape if x.is_floating_point() else 0),
        h_n.new_empty(h_n.shape),
        c_n.new_empty(c_n.shape),
        [w.new_empty(w.shape) for w in weights],
    )


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, h, c, weights = inputs[:4]
    _, h_n, c_n, handle = output
    ctx.save_for_backward(x, h_n, c_n, handle, *weights)
    ctx.with_h, ctx.with_c, ctx.rest = h is not None, c is not None, len(inputs) - 4
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Any, dh: Any, dc: Any, _: Any) -> tuple[Any, ...]:
    x, h_n, c_n, handle, *weights = ctx.saved_tensors
    dx, dh_0, dc_0, grads = torch.ops.rnnkern.backward(handle, dy, dh, dc, x, h_n, c_n, weights)
    return (
        dx if x.is_floating_point() else None,
        dh_0 if ctx.with_h else None,
        dc_0 if ctx.with_c else None,
        grads,
        *[None] * ctx.rest,
    )


def _twice(ctx: Any, *gradients: Any) -> NoReturn:
    raise RuntimeError(_TWICE)


_SPEC = (
    "str kind, str option, int inputs, int units, int layers, bool bidirectional, bool bias, "
    "float dropout, str compute, bool theirs, int projection"
)
_forward_operator = torch.library.custom_op(
    "rnnkern::forward",
    _forward,
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor? h, Tensor? c, Tensor[] weights, Tensor? lengths, Tensor? key, "
        f"{_SPEC}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
_forward_operator.register_fake(_forward_shapes)
_forward_operator.register_autograd(_gradients, setup_context=_keep_for_backward)
_backward_operator = torch.library.custom_op(
    "rnnkern::backward",
    _backward,
    mutates_args=(),
    schema=(
        "(Tensor handle, Tensor? dy, Tensor? dh, Tensor? dc, Tensor x, Tensor h_n, Tensor c_n, "
        "Tensor[] weights) -> (Tensor, Tensor, Tensor, Tensor[])"
    ),
)
_backward_operator.register_fake(_backward_shapes)
_backward_operator.register_autograd(_twice)

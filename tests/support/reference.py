# SPDX-License-Identifier: Apache-2.0
"""The cells in plain float64 NumPy, forward and backward: slow, and meant to be right on reading.

Nothing here comes from rnnkern. Parameters are a dictionary under the names a layer uses; how many
layers and directions there are is read from those names. Shapes are always (T, B, features); a
state is a tuple, ``(h,)`` or ``(h, c)``, of arrays (num_layers * D, B, H). The tests hold this file
against ONNX, ONNX Runtime and PyTorch, and its backward against finite differences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
State: TypeAlias = tuple[Array, ...]
Params: TypeAlias = Mapping[str, Array]


Rounding: TypeAlias = Callable[[Array], Array]  # of an operand

_operands: ContextVar[tuple[Rounding, Rounding] | None] = ContextVar("_operands", default=None)


def dot(a: Array, b: Array) -> Array:
    """The matrix product; within ``rounded_operands`` that of rounded operands."""
    rounded = _operands.get()
    return a @ b if rounded is None else rounded[0](a) @ rounded[1](b)


def to_bfloat16(a: Array) -> Array:
    """The nearest float64 to a's float32 value that has 8 significant bits, ties to even."""
    fraction, exponent = np.frexp(a.astype(np.float32).astype(np.float64))
    return np.ldexp(np.round(fraction * 256.0) / 256.0, exponent)


def int8_rows(a: Array) -> Array:
    """Each row as whole numbers in -127..127 times max|a| / 127."""
    a = a.astype(np.float32)
    most = np.abs(a).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(most > 0, np.rint(a * (np.float32(127) / most)), 0)
    return np.asarray(whole.astype(np.float64) * (most / np.float32(127)))


def int8_columns(b: Array) -> Array:
    """Each column as such numbers times max|b| / 127, the next that has 16 bits, not below it."""
    most = np.abs(b.astype(np.float32)).max(axis=0, keepdims=True)
    fraction, exponent = np.frexp((most / np.float32(127)).astype(np.float64))
    scale = np.ldexp(np.ceil(fraction * 65536.0) / 65536.0, exponent)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(scale > 0, np.rint((b / scale).astype(np.float32)), 0)
    return np.asarray(whole * scale)


@contextmanager
def rounded_operands(to: str = "bfloat16") -> Iterator[None]:
    """Within, every matrix product takes its operands rounded: to bfloat16, or int8."""
    both = (to_bfloat16, to_bfloat16) if to == "bfloat16" else (int8_rows, int8_columns)
    token = _operands.set(both)
    try:
        yield
    finally:
        _operands.reset(token)


def sigmoid(a: Array) -> Array:
    """The logistic function, by tanh so that no exponential overflows."""
    return 0.5 * (1.0 + np.tanh(0.5 * a))


@dataclass(frozen=True)
class Weights:
    """The parameters of one layer and direction; absent ones are zeros.

    w_ih (G*H, I), w_hh (G*H, H), or as the cell has it, bias (G*H,), bias_hn (H,).
    """

    w_ih: Array
    w_hh: Array
    bias: Array
    bias_hn: Array


class Cell(ABC):
    """One step of a cell, and its derivative.

    ``a`` (B, G*H) is W_ih x_t + bias for all gates; ``saved`` is the old state, the gates in the
    order of the weights' rows, and whatever else the backward step needs.
    """

    gates: int
    states: int = 1
    own_bias: bool = False  # whether there is bias_hn
    recurrent: str | None = "weight_hh"  # what the layer calls w_hh, where there is one

    @abstractmethod
    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        """The new state, and the values saved for ``backward``."""

    @abstractmethod
    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        """From the gradient of the new state: those of a, the old state, w_hh and bias_hn."""


class Rnn(Cell):
    """h' = f(W h + a), f being tanh or relu."""

    gates = 1

    def __init__(self, *, relu: bool) -> None:
        self.relu = relu

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        (h,) = state
        s = dot(h, w.w_hh.T) + a
        new = np.maximum(s, 0.0) if self.relu else np.tanh(s)
        return (new,), (h, new)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        h, new = saved
        da = dstate[0] * ((new > 0.0) if self.relu else (1.0 - new * new))
        return da, (dot(da, w.w_hh),), dot(da.T, h), np.zeros_like(w.bias_hn)


class SimplifiedGru(Cell):
    """u = sigmoid(W_u h + a_u); n = tanh(W_n h + a_n); h' = u n + (1 - u) h."""

    gates = 2

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        (h,) = state
        s_u, s_n = np.split(dot(h, w.w_hh.T) + a, 2, axis=1)
        u, n = sigmoid(s_u), np.tanh(s_n)
        return (u * n + (1.0 - u) * h,), (h, u, n)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        (dh,) = dstate
        h, u, n = saved
        da_u = dh * (n - h) * u * (1.0 - u)
        da_n = dh * u * (1.0 - n * n)
        da = np.concatenate([da_u, da_n], axis=1)
        return da, (dh * (1.0 - u) + dot(da, w.w_hh),), dot(da.T, h), np.zeros_like(w.bias_hn)


class GruBefore(Cell):
    """r, u = sigmoid(W h + a); n = tanh(W_n (r h) + a_n); h' = u n + (1 - u) h."""

    gates = 3

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        (h,) = state
        w_r, w_u, w_n = np.split(w.w_hh, 3)
        a_r, a_u, a_n = np.split(a, 3, axis=1)
        r, u = sigmoid(dot(h, w_r.T) + a_r), sigmoid(dot(h, w_u.T) + a_u)
        n = np.tanh(dot(r * h, w_n.T) + a_n)
        return (u * n + (1.0 - u) * h,), (h, r, u, n)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        (dh,) = dstate
        h, r, u, n = saved
        w_r, w_u, w_n = np.split(w.w_hh, 3)
        da_n = dh * u * (1.0 - n * n)
        drh = dot(da_n, w_n)
        da_r = drh * h * r * (1.0 - r)
        da_u = dh * (n - h) * u * (1.0 - u)
        dh_old = dh * (1.0 - u) + drh * r + dot(da_r, w_r) + dot(da_u, w_u)
        dw = np.concatenate([dot(da_r.T, h), dot(da_u.T, h), dot(da_n.T, r * h)])
        return np.concatenate([da_r, da_u, da_n], axis=1), (dh_old,), dw, np.zeros_like(w.bias_hn)


class GruAfter(Cell):
    """r, u = sigmoid(W h + a); n = tanh(r (W_n h + bias_hn) + a_n); h' = u n + (1 - u) h."""

    gates = 3
    own_bias = True

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        (h,) = state
        w_r, w_u, w_n = np.split(w.w_hh, 3)
        a_r, a_u, a_n = np.split(a, 3, axis=1)
        r, u = sigmoid(dot(h, w_r.T) + a_r), sigmoid(dot(h, w_u.T) + a_u)
        q = dot(h, w_n.T) + w.bias_hn
        n = np.tanh(r * q + a_n)
        return (u * n + (1.0 - u) * h,), (h, r, u, n, q)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        (dh,) = dstate
        h, r, u, n, q = saved
        w_r, w_u, w_n = np.split(w.w_hh, 3)
        da_n = dh * u * (1.0 - n * n)
        dq = da_n * r
        da_r = da_n * q * r * (1.0 - r)
        da_u = dh * (n - h) * u * (1.0 - u)
        dh_old = dh * (1.0 - u) + dot(da_r, w_r) + dot(da_u, w_u) + dot(dq, w_n)
        dw = np.concatenate([dot(da_r.T, h), dot(da_u.T, h), dot(dq.T, h)])
        return np.concatenate([da_r, da_u, da_n], axis=1), (dh_old,), dw, dq.sum(axis=0)


class MinimalGated(Cell):
    """f = sigmoid(W_f h + a_f); n = tanh(W_n (f h) + a_n); h' = f n + (1 - f) h."""

    gates = 2

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        (h,) = state
        w_f, w_n = np.split(w.w_hh, 2)
        a_f, a_n = np.split(a, 2, axis=1)
        f = sigmoid(dot(h, w_f.T) + a_f)
        n = np.tanh(dot(f * h, w_n.T) + a_n)
        return (f * n + (1.0 - f) * h,), (h, f, n)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        (dh,) = dstate
        h, f, n = saved
        w_f, w_n = np.split(w.w_hh, 2)
        da_n = dh * f * (1.0 - n * n)
        dfh = dot(da_n, w_n)
        da_f = (dh * (n - h) + dfh * h) * f * (1.0 - f)
        dh_old = dh * (1.0 - f) + dfh * f + dot(da_f, w_f)
        dw = np.concatenate([dot(da_f.T, h), dot(da_n.T, f * h)])
        return np.concatenate([da_f, da_n], axis=1), (dh_old,), dw, np.zeros_like(w.bias_hn)


class Lstm(Cell):
    """u, f, o = sigmoid(W h + a); g = tanh(W_g h + a_g); c' = u g + f c; h' = o tanh(c')."""

    gates = 4
    states = 2

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        h, c = state
        s_u, s_f, s_g, s_o = np.split(dot(h, w.w_hh.T) + a, 4, axis=1)
        u, f, g, o = sigmoid(s_u), sigmoid(s_f), np.tanh(s_g), sigmoid(s_o)
        new_c = u * g + f * c
        tanh_c = np.tanh(new_c)
        return (o * tanh_c, new_c), (h, c, u, f, g, o, tanh_c)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        dh, dc = dstate
        h, c, u, f, g, o, tanh_c = saved
        dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
        da_u = dc * g * u * (1.0 - u)
        da_f = dc * c * f * (1.0 - f)
        da_g = dc * u * (1.0 - g * g)
        da_o = dh * tanh_c * o * (1.0 - o)
        da = np.concatenate([da_u, da_f, da_g, da_o], axis=1)
        return da, (dot(da, w.w_hh), dc * f), dot(da.T, h), np.zeros_like(w.bias_hn)


class MinGru(Cell):
    """u = sigmoid(a_u); n = a_n; h' = u n + (1 - u) h."""

    gates = 2
    recurrent = None

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        (h,) = state
        a_u, n = np.split(a, 2, axis=1)
        u = sigmoid(a_u)
        return (u * n + (1.0 - u) * h,), (h, u, n)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        (dh,) = dstate
        h, u, n = saved
        da = np.concatenate([dh * (n - h) * u * (1.0 - u), dh * u], axis=1)
        return da, (dh * (1.0 - u),), np.zeros_like(w.w_hh), np.zeros_like(w.bias_hn)


class MinLstm(Cell):
    """u, f = sigmoid(a); n = a_n; h' = (u n + f h) / (u + f)."""

    gates = 3
    recurrent = None

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        (h,) = state
        a_u, a_f, n = np.split(a, 3, axis=1)
        u, f = sigmoid(a_u), sigmoid(a_f)
        return ((u * n + f * h) / (u + f),), (h, u, f, n)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        (dh,) = dstate
        h, u, f, n = saved
        both = u + f
        du, df = dh * f * (n - h) / both**2, dh * u * (h - n) / both**2
        da = np.concatenate([du * u * (1.0 - u), df * f * (1.0 - f), dh * u / both], axis=1)
        return da, (dh * f / both,), np.zeros_like(w.w_hh), np.zeros_like(w.bias_hn)


class IndRnn(Cell):
    """h' = relu(w h + a), w_hh being a row (1, H)."""

    gates = 1
    recurrent = "weight_u"

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        (h,) = state
        new = np.maximum(w.w_hh * h + a, 0.0)
        return (new,), (h, new)

    def backward(
        self, dstate: State, saved: State, w: Weights
    ) -> tuple[Array, State, Array, Array]:
        h, new = saved
        da = dstate[0] * (new > 0.0)
        return da, (da * w.w_hh,), (da * h).sum(axis=0, keepdims=True), np.zeros_like(w.bias_hn)


CELLS: dict[str, Cell] = {
    "rnn_tanh": Rnn(relu=False),
    "rnn_relu": Rnn(relu=True),
    "simplified_gru": SimplifiedGru(),
    "gru_before": GruBefore(),
    "gru_after": GruAfter(),
    "minimal_gated": MinimalGated(),
    "lstm": Lstm(),
    "min_gru": MinGru(),
    "min_lstm": MinLstm(),
    "ind_rnn": IndRnn(),
}


def suffixes(params: Params) -> list[str]:
    """The endings of the parameters' names, ``_l0``, ``_l0_reverse``, ``_l1``, ..., in order."""
    directions = ["", "_reverse"] if "weight_ih_l0_reverse" in params else [""]
    layers = sum(f"weight_ih_l{k}" in params for k in range(len(params)))
    return [f"_l{k}{direction}" for k in range(layers) for direction in directions]


def _weights(cell: Cell, params: Params, suffix: str) -> Weights:
    w_ih = params[f"weight_ih{suffix}"].astype(np.float64)
    nothing = np.zeros((0, len(w_ih) // cell.gates))
    w_hh = params.get(f"{cell.recurrent}{suffix}", nothing).astype(np.float64)
    bias = params.get(f"bias{suffix}", np.zeros(len(w_ih))).astype(np.float64)
    bias_hn = params.get(f"bias_hn{suffix}", np.zeros(w_hh.shape[1])).astype(np.float64)
    return Weights(w_ih, w_hh, bias, bias_hn)


def _row_wise(live: Array, yes: State, no: State) -> State:
    return tuple(np.where(live, a, b) for a, b in zip(yes, no, strict=True))


class Direction:
    """One layer in one direction over a whole sequence.

    A row past its length keeps its state and gives zeros; so the reverse direction, walking from
    step T-1 down, starts at the row's own last step without further ado.
    """

    def __init__(self, cell: Cell, w: Weights, lengths: Array, *, reverse: bool) -> None:
        self.cell, self.w, self.lengths, self.reverse = cell, w, lengths, reverse
        self.saved: list[tuple[int, Array, Array, State]] = []

    def forward(self, x: Array, state: State) -> tuple[Array, State]:
        """x (T, B, I), state (B, H) each: y (T, B, H) and the last state."""
        y = np.zeros((*x.shape[:2], self.w.w_hh.shape[1]))
        steps = range(len(x))
        for t in reversed(steps) if self.reverse else steps:
            live = (t < self.lengths)[:, None]
            x_t = np.where(live, x[t], 0.0)
            new, saved = self.cell.forward(dot(x_t, self.w.w_ih.T) + self.w.bias, state, self.w)
            self.saved.append((t, live, x_t, saved))
            y[t] = np.where(live, new[0], 0.0)
            state = _row_wise(live, new, state)
        return y, state

    def backward(self, dy: Array, dstate: State) -> tuple[Array, State, Weights]:
        """The gradients of x, of the first state and of the weights."""
        grads = Weights(*(np.zeros_like(p) for p in vars(self.w).values()))
        dx = np.zeros((*dy.shape[:2], self.w.w_ih.shape[1]))
        for t, live, x_t, saved in reversed(self.saved):
            dnew = (dstate[0] + dy[t], *dstate[1:])
            dnew = tuple(np.where(live, d, 0.0) for d in dnew)
            da, dold, dw_hh, dbias_hn = self.cell.backward(dnew, saved, self.w)
            dx[t] = dot(da, self.w.w_ih)
            grads.w_ih[...] += dot(da.T, x_t)
            grads.w_hh[...] += dw_hh
            grads.bias[...] += da.sum(axis=0)
            grads.bias_hn[...] += dbias_hn
            dstate = _row_wise(live, dold, dstate)
        return dx, dstate, grads


class Tape:
    """What a forward call leaves for ``backward``: y (T, B, D*H), state, and every direction."""

    def __init__(
        self,
        cell_name: str,
        params: Params,
        x: Array,
        state: State | None = None,
        lengths: Array | None = None,
        masks: Sequence[Array] | None = None,
        *,
        reverse: bool = False,
        merge: str = "concat",
    ) -> None:
        """x (T, B, I), or integer (T, B) for one-hot rows; masks: a factor for each layer's input
        but the first's (dropout). A lone direction is the reverse one if asked for; two are merged.
        """
        cell = CELLS[cell_name]
        self.params, self.suffixes, self.masks = params, suffixes(params), masks
        self.merge, self.outputs = merge, list[list[Array]]()
        self.tokens = np.issubdtype(x.dtype, np.integer)
        if self.tokens:
            x = np.eye(params["weight_ih_l0"].shape[1])[x]
        self.cell = cell
        steps, batch, hidden = *x.shape[:2], len(params["weight_ih_l0"]) // cell.gates
        if lengths is None:
            lengths = np.full(batch, steps)
        if state is None:
            state = (np.zeros((len(self.suffixes), batch, hidden)),) * cell.states
        self.directions = [
            Direction(
                cell, _weights(cell, params, s), lengths, reverse=reverse or s.endswith("_reverse")
            )
            for s in self.suffixes
        ]
        self.per_layer = 2 if any(s.endswith("_reverse") for s in self.suffixes) else 1

        self.y: Array = x.astype(np.float64)
        lasts: list[State] = []
        for first in range(0, len(self.directions), self.per_layer):
            if masks is not None and first > 0:
                self.y = self.y * masks[first // self.per_layer - 1]
            outputs = []
            for k in range(first, first + self.per_layer):
                start = tuple(s[k].astype(np.float64) for s in state)
                y, last = self.directions[k].forward(self.y, start)
                outputs.append(y)
                lasts.append(last)
            self.outputs.append(outputs)
            self.y = self._merged(outputs)
        self.state: State = tuple(np.stack(s) for s in zip(*lasts, strict=True))

    def backward(
        self, dy: Array | None = None, dstate: State | None = None
    ) -> tuple[Array | None, State, dict[str, Array]]:
        """The gradients of x (None for tokens), of the first state and of every parameter."""
        grad = np.zeros_like(self.y) if dy is None else dy.astype(np.float64)
        if dstate is None:
            dstate = tuple(np.zeros_like(s) for s in self.state)
        dfirst = tuple(np.zeros_like(s) for s in self.state)
        grads: dict[str, Array] = {}
        for first in reversed(range(0, len(self.directions), self.per_layer)):
            parts = self._split(grad, self.outputs[first // self.per_layer])
            grad = np.zeros(())
            for k, part in zip(range(first, first + self.per_layer), parts, strict=True):
                dlast = tuple(d[k].astype(np.float64) for d in dstate)
                dx, dstart, dw = self.directions[k].backward(part, dlast)
                grad = grad + dx
                for whole, one in zip(dfirst, dstart, strict=True):
                    whole[k] = one
                suffix = self.suffixes[k]
                kinds = ("weight_ih", self.cell.recurrent or "", "bias", "bias_hn")
                named = zip(kinds, vars(dw).values(), strict=True)
                grads |= {n + suffix: g for n, g in named if n + suffix in self.params}
            if self.masks is not None and first > 0:
                grad = grad * self.masks[first // self.per_layer - 1]
        return None if self.tokens else grad, dfirst, grads

    def _merged(self, outputs: list[Array]) -> Array:
        if len(outputs) == 1 or self.merge == "concat":
            return np.concatenate(outputs, axis=-1)
        a, b = outputs
        return {"sum": a + b, "average": (a + b) / 2.0, "product": a * b}[self.merge]

    def _split(self, grad: Array, outputs: list[Array]) -> list[Array]:
        if len(outputs) == 1 or self.merge == "concat":
            return np.split(grad, len(outputs), axis=-1)
        a, b = outputs
        of_a, of_b = {"sum": (1.0, 1.0), "average": (0.5, 0.5), "product": (b, a)}[self.merge]
        return [grad * of_a, grad * of_b]

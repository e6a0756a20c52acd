# SPDX-License-Identifier: Apache-2.0
"""How others stack the gates of a cell, against how the kernels do.

The kernels say the order of the gates (`CellFacts`); here is the order of everybody else, once. A
gate with a minus weighs h_{t-1} there and the candidate here: σ(-a) = 1 - σ(a), so its weights and
biases change sign, which is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import CellFacts, Weights

# By whose they are, and the class of our layer. A class that is missing has no like there.
ORDERS: dict[str, dict[str, str]] = {
    "PyTorch": {"RNN": "h", "GRU": "r -u n", "LSTM": "u f n o"},
    "Keras": {"RNN": "h", "GRU": "-u r n", "LSTM": "u f n o"},
    "ONNX": {"RNN": "h", "GRU": "-u r n", "LSTM": "u o f n"},
    "Flax": {"RNN": "h", "SimplifiedGRU": "-u n", "GRU": "r -u n", "LSTM": "u f n o"},
    "MLX": {"RNN": "h", "GRU": "r -u n", "LSTM": "u f n o"},
}


class Theirs(NamedTuple):
    """One layer in one direction as others have it: gates stacked in rows, two biases.

    Attributes:
        weight_ih: (G·H, I).
        weight_hh: (G·H, H), or with a projection (G·H, P).
        bias_ih: (G·H), or None.
        bias_hh: (G·H), or None.
        weight_hr: (P, H), of a projection; or None.

    """

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None = None
    bias_hh: Array | None = None
    weight_hr: Array | None = None


class Order:
    """How one of them stacks the gates of one cell.

    Args:
        whose: a key of ``ORDERS``.
        kind: the class of our layer, which has an order there.
        facts: of the cell.

    """

    def __init__(self, whose: str, kind: str, facts: CellFacts) -> None:
        theirs = [g for g in ORDERS[whose][kind].split() if g.lstrip("-") in facts.gates]
        names = [gate.lstrip("-") for gate in theirs]
        # Of each of our gates, where it is there, and its sign.
        self.places = [names.index(gate) for gate in facts.gates]
        self.signs = [-1.0 if theirs[k].startswith("-") else 1.0 for k in self.places]
        self.apart = facts.recurrent_bias_gate
        self._in_order = self.places == sorted(self.places)
        self._negated = [k for k, sign in enumerate(self.signs) if sign < 0]

    def ours(self, rows: Array) -> Array:
        """A copy of their rows (G·H, ...), stacked as ours."""
        ours = np.empty(rows.shape, rows.dtype)
        self._move(rows, ours)
        return ours

    def _move(self, rows: Array, into: Array) -> None:
        theirs = self._blocks(rows)
        for block, place, sign in zip(self._blocks(into), self.places, self.signs, strict=True):
            np.multiply(theirs[place], sign, out=block)

    def theirs(self, rows: Array) -> Array:
        """A copy of our rows (G·H, ...), stacked as theirs."""
        ours, theirs = self._blocks(rows), self._blocks(np.empty(rows.shape, rows.dtype))
        for block, place, sign in zip(ours, self.places, self.signs, strict=True):
            np.multiply(block, sign, out=theirs[place])
        return theirs.reshape(rows.shape)

    def _blocks(self, rows: Array) -> Array:
        """Rows (G·H, ...) by gate: (G, H, ...)."""
        return rows.reshape(len(self.places), -1, *rows.shape[1:])

    def to_ours(self, given: Theirs) -> Weights:
        """Their arrays of one layer and direction as ours: the biases are added up."""
        bias = bias_hn = None
        if given.bias_ih is not None or given.bias_hh is not None:
            units = given.weight_hh.shape[1]
            zero = np.zeros(given.weight_hh.shape[0], given.weight_hh.dtype)
            of_h = self.ours(zero if given.bias_hh is None else given.bias_hh)
            bias = self.ours(zero if given.bias_ih is None else given.bias_ih)
            if self.apart >= 0:
                own = slice(self.apart * units, (self.apart + 1) * units)
                bias_hn = of_h[own].copy()
                of_h[own] = 0
            with np.errstate(all="ignore"):
                bias += of_h
        hr = None if given.weight_hr is None else given.weight_hr.copy()
        ih, hh = self.ours(given.weight_ih), self.ours(given.weight_hh)
        return Weights(ih, hh, bias, bias_hn, weight_hr=hr)

    def to_theirs(self, own: Weights) -> Theirs:
        """Our arrays as theirs: the second bias is zero, but for a part that stands apart."""
        ih, hh = self.theirs(own.weight_ih), self.theirs(own.recurrent)
        hr = None if own.weight_hr is None else own.weight_hr.copy()
        if own.bias is None:
            return Theirs(ih, hh, weight_hr=hr)
        return Theirs(ih, hh, self.theirs(own.bias), self.theirs(self._second_bias(own)), hr)

    def refreshing(self, given: Theirs, own: Weights) -> list[tuple[np.ufunc, tuple[Array, ...]]]:
        """What makes of their arrays, as they will then be, ours: functions and their arrays.

        `own` is what ``to_ours`` of them gave, and is written to.
        """
        todo: list[tuple[np.ufunc, tuple[Array, ...]]] = []
        for k, (place, sign) in enumerate(zip(self.places, self.signs, strict=True)):
            turn = np.negative if sign < 0 else np.positive
            for theirs, ours in zip(given[:2], own[:2], strict=True):
                assert ours is not None
                todo.append((turn, (self._blocks(theirs)[place], self._blocks(ours)[k])))
            if own.bias is None or given.bias_ih is None or given.bias_hh is None:
                continue
            first, second = (self._blocks(b)[place] for b in (given.bias_ih, given.bias_hh))
            bias = self._blocks(own.bias)[k]
            if k == self.apart and own.bias_hn is not None:
                todo += [(turn, (first, bias)), (turn, (second, own.bias_hn))]
                continue
            todo.append((np.add, (first, second, bias)))
            if sign < 0:
                todo.append((np.negative, (bias, bias)))
        return todo

    def gradients(self, own: Weights) -> Theirs:
        """Gradients of our arrays, which are spoilt, as those of theirs.

        Both biases have the gradient that their sum has.
        """
        ih, hh = self._spoilt(own.weight_ih), self._spoilt(own.recurrent)
        if own.bias is None:
            return Theirs(ih, hh, weight_hr=own.weight_hr)
        first = self._spoilt(own.bias)
        second = first.copy()
        if own.bias_hn is not None:
            units = own.recurrent.shape[1]
            place, sign = self.places[self.apart], self.signs[self.apart]
            np.multiply(own.bias_hn, sign, out=second[place * units : (place + 1) * units])
        return Theirs(ih, hh, first, second, own.weight_hr)

    def _spoilt(self, rows: Array) -> Array:
        """As ``theirs``, in place where only signs differ."""
        if not self._in_order:
            return self.theirs(rows)
        height = len(rows) // len(self.places)
        for k in self._negated:
            block = rows[k * height : (k + 1) * height]
            np.negative(block, out=block)
        return rows

    def _second_bias(self, own: Weights) -> Array:
        assert own.bias is not None
        second = np.zeros_like(own.bias)
        if own.bias_hn is not None:
            units = own.recurrent.shape[1]
            second[self.apart * units : (self.apart + 1) * units] = own.bias_hn
        return second

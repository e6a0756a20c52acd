# SPDX-License-Identifier: Apache-2.0
"""Attention of a decoder to all that its encoder gave (Luong et al. 2015, arXiv:1508.04025).

With h_t of the decoder and m_s of the encoder, α_t = softmax over s of h_t·m_s, the context is
c_t = Σ_s α_ts m_s, and what the head sees is tanh(W [c_t; h_t]).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import Device
from rnnkern.layers.linear import Linear, LinearTape


class Memory:
    """What an encoder gave, to be attended to.

    Args:
        device: Where it is.
        y: The encoder's outputs (S, B, N).
        lengths: (B,) in host memory: steps after them are not seen. ``None`` sees all. A row
            without steps has a context of 0.

    """

    def __init__(self, device: Device, y: Array, lengths: Any) -> None:
        self._device = device
        self.rows = device.contiguous(y.swapaxes(0, 1))  # (B, S, N)
        self._seen: Array | None = None
        if lengths is not None:
            ends = np.asarray(lengths, np.int64)[:, None, None]
            self._seen = device.put(np.arange(len(y)) < ends)

    def weights(self, h: Array) -> Array:
        """Of h (B, T, N): α (B, T, S), whose sum over S is 1."""
        xp = self._device.xp
        if self.rows.shape[1] == 0:
            empty: Array = xp.zeros((*h.shape[:2], 0), h.dtype)
            return empty
        scores = xp.matmul(h, self.rows.swapaxes(1, 2))
        if self._seen is not None:
            scores = xp.where(self._seen, scores, -np.inf)
        top = scores.max(axis=2, keepdims=True)
        with np.errstate(all="ignore"):
            exponentials = np.exp(scores - xp.where(np.isfinite(top), top, top.dtype.type(0)))
            weights: Array = exponentials / np.maximum(
                exponentials.sum(axis=2, keepdims=True), np.finfo(h.dtype).tiny
            )
        return weights

    def context(self, weights: Array) -> Array:
        """Σ_s α_ts m_s: (B, T, N)."""
        context: Array = self._device.xp.matmul(weights, self.rows)
        return context


class AttentionTape:
    """What attention over a whole target kept."""

    def __init__(
        self,
        memory: Memory,
        h: Array,
        weights: Array,
        live: Array | None,
        y: Array,
        linear: LinearTape,
    ) -> None:
        self.weights = weights
        self._memory = memory
        self._h = h
        self._live = live
        self._y = y
        self._linear = linear

    def backward(self, dy: Array) -> tuple[Array, Array, dict[str, Array]]:
        """∂L/∂h (T, B, N), ∂L/∂(the encoder's outputs) (S, B, N), and those of W."""
        linear = self._linear.backward(dy * (1.0 - self._y * self._y))
        assert linear.x is not None
        joined = linear.x if self._live is None else linear.x * self._live
        size = self._h.shape[2]
        dcontext, dh = (joined[..., a : a + size].swapaxes(0, 1) for a in (0, size))
        rows, weights = self._memory.rows, self.weights
        dweights = dcontext @ rows.swapaxes(1, 2)
        mean = (weights * dweights).sum(axis=2, keepdims=True)
        dscores = weights * (dweights - mean)
        drows = weights.swapaxes(1, 2) @ dcontext + dscores.swapaxes(1, 2) @ self._h
        dh = dh + dscores @ rows
        return dh.swapaxes(0, 1), drows.swapaxes(0, 1), linear.params


def attend(
    memory: Memory, combine: Linear, h: Array, live: Array | None
) -> tuple[Array, AttentionTape]:
    """The outputs (T, B, N) of the decoder's (T, B, N), and a tape.

    ``live`` (T, B, 1), 0 or 1, makes 0 of those past a row's length.
    """
    own = memory._device.contiguous(h.swapaxes(0, 1))
    weights = memory.weights(own)
    joined = _joined(memory, weights, own).swapaxes(0, 1)
    if live is not None:
        joined = joined * live
    pre, tape = combine.forward(joined)
    y = np.tanh(pre)
    return y, AttentionTape(memory, own, weights, live, y, tape)


def attend_step(memory: Memory, combine: Any, h: Array) -> Array:
    """The same for one step of (B·W, N), W rows in turn for each of the memory's."""
    own = h.reshape(len(memory.rows), -1, h.shape[1])
    joined = _joined(memory, memory.weights(own), own)
    y: Array = np.tanh(combine(joined.reshape(len(h), -1)))
    return y


def _joined(memory: Memory, weights: Array, h: Array) -> Array:
    joined: Array = memory._device.xp.concatenate([memory.context(weights), h], axis=2)
    return joined

# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers whose weights are packed once, for inference."""

from __future__ import annotations

from typing import Any

from rnnkern._checks import Array
from rnnkern.layers.arguments import State
from rnnkern.layers.marks import ZERO, asked
from rnnkern.layers.narrow import check_narrow, narrow_layout, round_weights
from rnnkern.layers.network import Network, run


class Frozen:
    """A packed snapshot of a layer's parameters; see ``layer.freeze``.

    It does what the layer's plain call does, with the parameters of the moment when it was made. It
    holds no hidden state: one may be called from several threads at once.

    Example:
        >>> gru = rk.GRU(3, 4, seed=0)
        >>> frozen, x = gru.freeze(), np.ones((5, 2, 3), np.float32)
        >>> bool((frozen(x)[0] == gru(x)[0]).all())
        True

    """

    def __init__(self, network: Network, text: str, weights: str | None = None) -> None:
        """Of a network, of whose weights it takes a copy; `text` is its layer's repr."""
        check_narrow(network, weights, ("int8",))
        copy = network.snapshot(narrow_layout(network.layout, weights))
        round_weights(copy, weights)
        self._network = copy.packed()
        self._text = text
        self._weights = weights

    def __call__(
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
        resets: Any = None,
        reset_to: str | State = "zero",
        segments: Any = None,
        mask: Any = None,
        masked_output: str = "zero",
    ) -> tuple[Array, State]:
        """As a plain call of the layer: the same arguments, results and errors."""
        marks = None
        if not (resets is segments is mask is None and reset_to is masked_output is ZERO):
            marks = asked(resets, reset_to, segments, mask, masked_output)
        return run(self._network, x, state, lengths, out, marks)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the panels are packed anew, for the processor that is there."""
        return type(self), (self._network, self._text, self._weights)

    def __repr__(self) -> str:
        narrow = "" if self._weights is None else f", weights={self._weights!r}"
        return f"Frozen({self._text}{narrow})"

# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers whose weights are packed once, for inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rnnkern._checks import Array
from rnnkern.layers.tape import State

if TYPE_CHECKING:
    from rnnkern.layers.base import Recurrent


class Frozen:
    """A packed snapshot of a layer's parameters; see ``layer.freeze``.

    It does what the layer's plain call does, with the parameters of the moment when it was made. It
    holds no hidden state: one may be called from several threads at once.
    """

    def __init__(self, layer: Recurrent) -> None:
        self._layer = layer._snapshot(batch_first=layer.batch_first)
        self._weights = self._layer._weights
        self._panels = self._layer._panels(self._weights)

    def __call__(
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
    ) -> tuple[Array, State]:
        """As a plain call of the layer: the same arguments, results and errors."""
        y, state, _ = self._layer._run(
            x, state, lengths, out, weights=self._weights, panels=self._panels
        )
        return y, state

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the panels are packed anew, for the processor that is there."""
        return type(self), (self._layer,)

    def __repr__(self) -> str:
        return f"Frozen({self._layer!r})"

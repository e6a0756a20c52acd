"""What a forward pass keeps, and the backward pass over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array, last_axis_contiguous, shaped

if TYPE_CHECKING:
    from rnnkern.recurrent import Recurrent

State = Union[Array, "tuple[Array, Array]"]


@dataclass(frozen=True)
class Weights:
    """One layer's parameters in one direction."""

    weight_ih: Array
    weight_hh: Array
    bias: Array | None
    bias_hn: Array | None

    def copy(self) -> Weights:
        """Arrays of its own, so that a later step of training does not change them."""
        return Weights(
            self.weight_ih.copy(),
            self.weight_hh.copy(),
            None if self.bias is None else self.bias.copy(),
            None if self.bias_hn is None else self.bias_hn.copy(),
        )


@dataclass(frozen=True)
class Pass:
    """What backward needs of one layer in one direction."""

    weights: Weights
    x: Array
    h_0: Array
    c_0: Array | None
    y: Array
    saved: Array | None
    cells: Array | None


@dataclass(frozen=True)
class Input:
    """A call's checked arguments, time first and batched."""

    x: Array
    h_0: Array
    c_0: Array | None
    lengths: Array | None
    unbatched: bool

    @property
    def steps(self) -> int:
        """T."""
        return int(self.x.shape[0])

    @property
    def batch(self) -> int:
        """B."""
        return int(self.x.shape[1])


class Tape:
    """What one ``forward`` kept. ``backward`` may be called any number of times."""

    def __init__(
        self, layer: Recurrent, given: Input, passes: list[Pass], masks: list[Array]
    ) -> None:
        self._layer = layer
        self._given = given
        self._passes = passes
        self._masks = masks

    def backward(
        self, dy: Any = None, dstate: State | None = None
    ) -> tuple[Array | None, State, dict[str, Array]]:
        """Gradients of a loss L by back-propagation through time.

        Args:
            dy: ∂L/∂y, shaped as y; None is zero.
            dstate: ∂L/∂(last state), shaped as the state; None is zero.

        Returns:
            ∂L/∂x (None for tokens), ∂L/∂(initial state), and ∂L/∂parameter by name.

        Raises:
            TypeError, ValueError: dy or dstate has the wrong dtype or shape.

        """
        layer, given = self._layer, self._given
        dh, dc = layer._check_state("dstate", dstate, given.batch, given.unbatched)
        if dstate is not None:  # the kernels work in place, and these are the caller's
            dh, dc = dh.copy(), None if dc is None else dc.copy()
        upstream = self._check_dy(dy)
        grads: dict[str, Array] = {}
        suffixes = [suffix for _, suffix in layer._suffixes()]
        dx: Array | None = None
        for index_layer in reversed(range(layer.num_layers)):
            first = self._passes[index_layer * layer.num_directions]
            dx = None if first.x.ndim == 2 else np.zeros(first.x.shape, layer.dtype)
            for direction in range(layer.num_directions):
                index = index_layer * layer.num_directions + direction
                grads.update(self._backward_pass(index, suffixes[index], upstream, dh, dc, dx))
            if index_layer > 0:
                assert dx is not None
                upstream = dx * self._masks[index_layer - 1] if self._masks else dx
        ordered = {name: grads[name] for name in layer.params}
        dstate_0 = (dh, dc) if dc is not None else dh
        return (
            None if dx is None else layer._as_given(dx, given),
            layer._state_as_given(dstate_0, given),
            ordered,
        )

    def _backward_pass(
        self,
        index: int,
        suffix: str,
        upstream: Array | None,
        dh: Array,
        dc: Array | None,
        dx: Array | None,
    ) -> dict[str, Array]:
        """One layer in one direction: dh, dc and dx are changed in place."""
        layer, kept = self._layer, self._passes[index]
        direction = index % layer.num_directions
        w = kept.weights
        grads = {
            f"weight_ih_{suffix}": np.zeros_like(w.weight_ih),
            f"weight_hh_{suffix}": np.zeros_like(w.weight_hh),
        }
        if w.bias is not None:
            grads[f"bias_{suffix}"] = np.zeros_like(w.bias)
        if w.bias_hn is not None:
            grads[f"bias_hn_{suffix}"] = np.zeros_like(w.bias_hn)
        _core.backward(
            layer._cell,
            kept.x,
            kept.h_0,
            kept.c_0,
            w.weight_ih,
            w.weight_hh,
            self._given.lengths,
            direction == 1,
            kept.y,
            kept.saved,
            kept.cells,
            None if upstream is None else layer._direction(upstream, direction),
            dh[index],
            None if dc is None else dc[index],
            dx,
            grads[f"weight_ih_{suffix}"],
            grads[f"weight_hh_{suffix}"],
            grads.get(f"bias_{suffix}"),
            grads.get(f"bias_hn_{suffix}"),
        )
        return grads

    def _check_dy(self, dy: Any) -> Array | None:
        if dy is None:
            return None
        layer, given = self._layer, self._given
        shape: tuple[int, ...] = (given.steps, given.batch, layer._features)
        if given.unbatched:
            shape = (given.steps, layer._features)
        elif layer.batch_first:
            shape = (given.batch, given.steps, layer._features)
        array = shaped("dy", dy, shape, layer.dtype)
        if given.unbatched:
            array = array[:, None]
        elif layer.batch_first:
            array = array.swapaxes(0, 1)
        return last_axis_contiguous(array)

# SPDX-License-Identifier: Apache-2.0
"""What a stack's forward pass keeps, and the backward pass over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnkern._checks import Array, boolean
from rnnkern.devices import masked
from rnnkern.layers.arguments import StackState, State, states_of
from rnnkern.layers.gradients import Gradients, StateGradients
from rnnkern.layers.steps import Steps
from rnnkern.layers.tape import Tape


class StackTape:
    """What one ``Stack.forward`` kept. ``backward`` may be called any number of times.

    Example:
        >>> stack = rk.Stack([rk.GRU(3, 4), rk.LSTM(4, 4)])
        >>> y, state, tape = stack.forward(np.ones((5, 2, 3), np.float32))
        >>> dx, (dh, (dh_top, dc_top)), grads = tape.backward(dlast=np.ones((2, 4), np.float32))

    """

    def __init__(
        self,
        tapes: list[Tape],
        masks: list[Array | None],
        residual: Sequence[bool],
        steps: Steps,
    ) -> None:
        """Of the layers' tapes, their inputs' dropout masks, and whether inputs go round them."""
        self._tapes = tapes
        self._masks = masks
        self._residual = residual
        self._steps = steps

    def __repr__(self) -> str:
        return f"StackTape({self._tapes!r})"

    def gates(self) -> list[dict[str, Array]]:
        """What each gate gave at each step, as a layer's tape has it: of all layers in turn."""
        return [gates for tape in self._tapes for gates in tape.gates()]

    def backward(
        self,
        dy: Any = None,
        dstate: StackState | None = None,
        *,
        dlast: Any = None,
        state_gradients: bool = False,
        x_gradient: bool = True,
    ) -> Gradients:
        """Gradients of a loss L by back-propagation through time.

        Args:
            dy: ∂L/∂y, shaped as y; None is zero.
            dstate: ∂L/∂(last states), a list or tuple with that of each layer; None, also as one of
                them, is zero.
            dlast: ∂L/∂(last output), shaped as ``last_output`` gives it; None is zero.
            state_gradients: whether to return those of every step's state and gates, as a layer's
                tape does.
            x_gradient: whether to return ∂L/∂x, as a layer's tape does; without it there is None.

        Returns:
            `Gradients`, which unpacks to ∂L/∂x (None for tokens), a tuple of ∂L/∂(initial state) of
            each layer, and ∂L/∂parameter by name; with `state_gradients` a fourth item, a list with
            the `StateGradients` of all layers in turn; and last, where ``reset_to`` was states, a
            tuple of their gradients.

        Raises:
            TypeError, ValueError: dy, dstate or dlast has the wrong dtype or shape.

        """
        whole, device = self._steps, self._steps.device
        boolean("x_gradient", x_gradient)
        dstates = states_of("dstate", dstate, len(self._tapes))
        if dy is not None:
            dy = whole.repeat_backward(device.shaped("dy", dy, whole.shape, whole.dtype))
            if any(self._residual):
                dy = whole.within(dy)
        if dlast is not None:
            dlast = device.array("dlast", dlast)
        first: list[State] = []
        grads: dict[int, dict[str, Array]] = {}
        steps: list[StateGradients] = []
        anew: list[State | None] = []
        for k in reversed(range(len(self._tapes))):
            wanted = x_gradient or k > 0
            own = self._tapes[k].backward(
                dy,
                dstates[k],
                dlast=dlast,
                state_gradients=state_gradients,
                x_gradient=wanted,
            )
            mask, dx = self._masks[k], own.x
            if mask is not None and dx is not None:
                dx = masked(dx, mask)
            if self._residual[k] and wanted:
                assert dx is not None
                dx = self._beside(dx, dy, dlast)
            dy, dlast = dx, None
            first.insert(0, own.state)
            anew.insert(0, own.reset_to)
            steps = (own.steps or []) + steps
            grads[k] = own.params
        return Gradients(
            params={f"{k}.{name}": a for k in sorted(grads) for name, a in grads[k].items()},
            x=dy,
            state=tuple(first),
            steps=steps if state_gradients else None,
            reset_to=None if all(state is None for state in anew) else tuple(anew),
        )

    def _beside(self, dx: Array, dy: Array | None, dlast: Array | None) -> Array:
        """∂L/∂(a layer's input) by way of the layer, and what goes round it."""
        with np.errstate(all="ignore"):
            if dy is not None:
                dx = dx + dy
            if dlast is not None:
                dx = dx + self._steps.spread(dlast)
        return dx

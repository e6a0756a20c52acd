# SPDX-License-Identifier: Apache-2.0
"""What a backward pass gives: one class for layers, ``Linear`` and models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rnnkern._checks import Array, array_text
from rnnkern.layers.fixed import ReadOnly


class StateGradients(ReadOnly):
    """∂L/∂(what a layer computes at each step): arrays (T, B, D·H), 0 past a row's length.

    T and B stand as in y.

    Attributes:
        h: ∂L/∂h_t by every path, through y_t and through all later steps; as wide as h, where it is
            a projection.
        c: ∂L/∂c_t likewise; None for a cell without c.
        gates: for each gate by name, ∂L/∂a_t, where a_t is what its σ or tanh is applied to.

    Example:
        >>> lstm = rk.LSTM(3, 4, seed=0)
        >>> y, _, tape = lstm.forward(np.ones((5, 2, 3), np.float32))
        >>> first = tape.backward(np.ones_like(y), state_gradients=True).steps[0]
        >>> first.c.shape, list(first.gates)
        ((5, 2, 4), ['u', 'f', 'n', 'o'])

    """

    h: Array
    c: Array | None
    gates: dict[str, Array]

    def __init__(self, h: Array, c: Array | None, gates: dict[str, Array]) -> None:
        vars(self).update(h=h, c=c, gates=gates)

    def __repr__(self) -> str:
        gates = ", ".join(f"{name}: {array_text(a)}" for name, a in self.gates.items())
        return f"StateGradients(h={array_text(self.h)}, c={array_text(self.c)}, gates={{{gates}}})"


class Gradients(ReadOnly):
    """The gradients of a loss L.

    It unpacks to what it has, in the order x, state, params, steps, reset_to: ``dx, dstate, grads``
    from a recurrent layer's tape, ``dx, grads`` from a `Linear`'s. Optimizers and clipping take it
    as they take its `params`.

    Attributes:
        params: ∂L/∂parameter by name, in the order of the layer's ``params``.
        x: ∂L/∂x; None for tokens.
        state: ∂L/∂(initial state), shaped as the state, h or (h, c) or a stack's tuple of
            these; None where there is none.
        steps: the `StateGradients` of each layer, where they were asked for, else None.
        reset_to: ∂L/∂(the state given for rows to begin anew with), shaped as it; else None.

    Example:
        >>> gru = rk.GRU(3, 4, seed=0)
        >>> y, _, tape = gru.forward(np.ones((5, 2, 3), np.float32))
        >>> gradients = tape.backward(np.ones_like(y))
        >>> dx, dh, grads = gradients
        >>> dx is gradients.x, grads is gradients.params
        (True, True)

    """

    params: dict[str, Array]
    x: Array | None
    state: Any
    steps: list[StateGradients] | None
    reset_to: Any

    def __init__(
        self,
        params: dict[str, Array],
        x: Array | None = None,
        state: Any = None,
        steps: list[StateGradients] | None = None,
        reset_to: Any = None,
    ) -> None:
        vars(self).update(params=params, x=x, state=state, steps=steps, reset_to=reset_to)

    def __repr__(self) -> str:
        params = ", ".join(f"{name}: {array_text(a)}" for name, a in self.params.items())
        parts = [f"x={array_text(self.x)}", f"params={{{params}}}"]
        if self.state is not None:
            parts.insert(1, f"state={array_text(self.state)}")
        if self.steps is not None:
            parts.append(f"steps={self.steps!r}")
        if self.reset_to is not None:
            parts.append(f"reset_to={array_text(self.reset_to)}")
        return f"Gradients({', '.join(parts)})"

    def __iter__(self) -> Iterator[Any]:
        yield self.x
        if self.state is not None:
            yield self.state
        yield self.params
        if self.steps is not None:
            yield self.steps
        if self.reset_to is not None:
            yield self.reset_to

    def __getitem__(self, place: int) -> Any:
        if isinstance(place, str):
            raise TypeError(f"Gradients has places, got the name {place!r}: .params has the names")
        return tuple(self)[place]

    def __len__(self) -> int:
        return sum(1 for _ in self)

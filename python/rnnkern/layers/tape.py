# SPDX-License-Identifier: Apache-2.0
"""What a forward pass keeps, and the backward pass over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from rnnkern._checks import Array, boolean
from rnnkern.devices import Kept, LayerSpec, masked
from rnnkern.devices.merging import split_gradient
from rnnkern.layers.arguments import Input, State
from rnnkern.layers.drops import NOTHING, Drops, draw, drop_weights
from rnnkern.layers.gradients import Gradients, StateGradients
from rnnkern.layers.marks import Asked
from rnnkern.layers.network import (
    Network,
    backward,
    by_name,
    forward,
    repeat_outputs,
    repeated,
)


class Tape:
    """What one ``forward`` kept. ``backward`` may be called any number of times.

    It can be copied, but not pickled: its weights are packed for the processor that it is on.

    Example:
        >>> gru = rk.GRU(3, 4, seed=0)
        >>> y, h, tape = gru.forward(np.ones((5, 2, 3), np.float32))
        >>> dx, dh, grads = tape.backward(np.ones_like(y))
        >>> list(tape.gates()[0])
        ['r', 'u', 'n']

    """

    def __init__(
        self,
        network: Network,
        given: Input,
        y: Array,
        kept: Kept | None,
        last: State,
        dropped: Mapping[str, Array],
    ) -> None:
        """Of a call that gave y (T, B, features) and those last states.

        `kept` is None where there was nothing to compute; `dropped` are the factors of
        weights that had some set to 0, by their names.
        """
        self._network = network
        self._given = given
        self._y = y
        self._kept = kept
        self._dropped = dropped
        # The factors of what both directions give last; the caller may write to the states.
        factors = network.spec.merges and network.spec.merge == "product"
        self._top = _top(last, network.spec).copy() if factors else None

    def __repr__(self) -> str:
        owner, given = self._network.layout.owner, self._given
        return f"Tape({owner}, steps={given.steps}, batch={given.batch})"

    def __copy__(self) -> Tape:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Tape:
        from copy import deepcopy

        # Neither the layer's facts nor what was kept for the kernels ever change, nor do factors.
        for never_changed in (self._network, self._kept, self._dropped):
            memo[id(never_changed)] = never_changed
        twin = self.__copy__()
        vars(twin).update(deepcopy(vars(self), memo))
        return twin

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Tape cannot be pickled, since its weights are packed for this processor: pickle the "
            "layer and x, and call forward again"
        )

    def gates(self) -> list[dict[str, Array]]:
        """What each gate gave at each step: for every layer, by its name, (T, B, D·H).

        The values are those after σ or tanh, and 0 past a row's length and where it is masked; T
        and B stand as in y.
        """
        spec = self._network.spec
        if spec.zoneout and spec.facts.saved == 0:
            raise ValueError(
                f"gates() needs zoneout=0 of this cell, got {spec.zoneout:g}: its gate is h, which "
                "units that keep their value have not"
            )
        names, directions = spec.facts.gates, spec.directions
        if self._kept is None:
            shape = (*self._y.shape[:2], directions * spec.units)
            nothing = self._network.device.xp.empty(shape, spec.dtype)
            values = [[nothing] * len(names)] * spec.layers
        elif spec.facts.saved == 0:  # then y, or what is merged in it, is the one gate's
            values = [[y] for y in self._kept.between]
            if not spec.merges:
                values.append([self._live(self._y)])
        else:
            unpacked = [
                self._unpacked(saved)[: len(names)]
                for saved in self._kept.saved
                if saved is not None
            ]
            values = [
                self._join(unpacked[i : i + directions])
                for i in range(0, len(unpacked), directions)
            ]
        layout = self._network.layout
        return [
            {n: layout.as_given(a, self._given) for n, a in zip(names, arrays, strict=True)}
            for arrays in values
        ]

    def backward(
        self,
        dy: Any = None,
        dstate: State | None = None,
        *,
        dlast: Any = None,
        state_gradients: bool = False,
        x_gradient: bool = True,
    ) -> Gradients:
        """Gradients of a loss L by back-propagation through time.

        Args:
            dy: ∂L/∂y, shaped as y; None is zero.
            dstate: ∂L/∂(last state), shaped as the state; None, also as one of a pair, is zero.
            dlast: ∂L/∂(last output), shaped as ``last_output`` gives it, for what reads that alone:
                of h of the top layer. It is added to what ``dstate`` says of it; None is zero.
            state_gradients: whether to return the gradients of every step's state and gates too;
                on ``device="cpu"`` alone.
            x_gradient: whether to return ∂L/∂x. Without it there is None, and a step has a product
                less: for a first layer, whose x is data.

        Returns:
            `Gradients`, which unpacks to ∂L/∂x (None for tokens), ∂L/∂(initial state), and
            ∂L/∂parameter by name; with `state_gradients` a fourth item, a list with the
            `StateGradients` of each layer; and last, where ``reset_to`` was a state, its gradient.

        Raises:
            TypeError, ValueError: dy, dstate or dlast has the wrong dtype or shape.

        """
        if state_gradients is not False or x_gradient is not True:  # small calls feel the checks
            state_gradients = boolean("state_gradients", state_gradients)
            x_gradient = boolean("x_gradient", x_gradient)
        network, given, kept = self._network, self._given, self._kept
        repeats, danew = repeated(network, given), self._new_danew()
        plain = dlast is None and repeats is None and danew is None and not state_gradients
        if kept is not None and plain:
            done = kept.direct(given.x, self._y, dy, dstate, given.unbatched, x_gradient)
            if done is not None:  # else something has to be converted, or is wrong
                dx, state, arrays = done
                return Gradients(self._with_dropped(by_name(network, arrays)), dx, state)
        layout = network.layout
        dh, dc = layout.own_state("dstate", dstate, given.batch, unbatched=given.unbatched)
        if dlast is not None:
            dh[-network.spec.directions :] += self._by_direction(dlast)
        upstream = layout.gradient(dy, given)
        if repeats is not None and upstream is not None:
            upstream = repeats.backward(upstream)
        traces = self._new_traces() if state_gradients else None
        dx, grads = backward(
            network, given, self._y, kept, upstream, dh, dc, traces, with_dx=x_gradient, danew=danew
        )
        return Gradients(
            params=self._with_dropped(grads),
            x=None if dx is None else layout.as_given(dx, given),
            state=layout.state_as_given(dh, dc, given),
            steps=None if traces is None else self._as_steps(traces),
            reset_to=None if danew is None else self._as_given_anew(*danew),
        )

    def _new_danew(self) -> tuple[Array, Array | None] | None:
        """Zeros for the gradient in what rows begin anew with, where that is a state of its own."""
        marks = self._given.marks
        if marks is None or marks.anew is None or marks.anew.is_initial:
            return None
        layout, batch = self._network.layout, self._given.batch
        return layout.state("reset_to", None, batch, unbatched=False)

    def _as_given_anew(self, h: Array, c: Array | None) -> State:
        """That gradient, shaped as the caller's state."""
        marks = self._given.marks
        if marks is not None and marks.anew is not None and marks.anew.is_shared:
            h = h.sum(axis=1, keepdims=True)
            c = None if c is None else c.sum(axis=1, keepdims=True)
        return self._network.layout.state_as_given(h, c, self._given)

    def _with_dropped(self, grads: dict[str, Array]) -> dict[str, Array]:
        """The gradients, in place those of matrices of which the call had dropped weights."""
        for name, factors in self._dropped.items():
            grads[name] = masked(grads[name], factors)
        return grads

    def _by_direction(self, dlast: Any) -> Array:
        """A gradient (B, features), or unbatched (features,), as (D, B, P)."""
        spec, given = self._network.spec, self._given
        shape = (spec.features,) if given.unbatched else (given.batch, spec.features)
        device = self._network.device
        array = device.shaped("dlast", dlast, shape, spec.dtype).reshape(given.batch, *shape[-1:])
        factors = [array] * spec.directions if self._top is None else list(self._top)
        parts: Array = device.xp.stack(split_gradient(spec, array, factors))
        return parts

    def _new_traces(self) -> list[Array]:
        """Room for what is told, by layer and direction, as the kernels have it."""
        spec = self._network.spec
        live = 0 if self._kept is None else len(self._kept.places)
        shape: tuple[int, ...] = (live, len(spec.facts.states) + len(spec.facts.gates), spec.units)
        if spec.projection:
            shape = live, shape[1] * spec.units + spec.projection
        empty = self._network.device.xp.empty
        return [empty(shape, spec.dtype) for _ in self._network.weights]

    def _as_steps(self, traces: list[Array]) -> list[StateGradients]:
        directions = self._network.spec.directions
        return [
            self._as_state_gradients(traces[i : i + directions])
            for i in range(0, len(traces), directions)
        ]

    def _as_state_gradients(self, traces: list[Array]) -> StateGradients:
        spec, layout = self._network.spec, self._network.layout
        facts, states = spec.facts, len(spec.facts.states)
        whole = traces
        if spec.projection:  # a row is flat, and ends with what is told of h
            whole = [t[:, : -spec.outputs].reshape(len(t), -1, spec.units) for t in traces]
        joined = self._join([self._unpacked(trace) for trace in whole])
        if spec.projection:
            joined[0] = self._join([self._unpacked(t[:, None, -spec.outputs :]) for t in traces])[0]
        parts = [layout.as_given(array, self._given) for array in joined]
        return StateGradients(
            h=parts[0],
            c=parts[1] if states > 1 else None,
            gates=dict(zip(facts.gates, parts[states:], strict=True)),
        )

    def _join(self, directions: list[Array]) -> list[Array]:
        """(K, T, B, H) of every direction as K arrays (T, B, D·H)."""
        return list(self._network.device.xp.concatenate(directions, axis=-1))

    def _live(self, y: Array) -> Array:
        """What y (T, B, D·H) has at the steps gone through, elsewhere 0."""
        assert self._kept is not None
        at, values = self._network.device.put(self._kept.places), y.reshape(-1, y.shape[-1])
        whole = self._network.device.xp.zeros(values.shape, y.dtype)
        whole[at] = values[at]
        live: Array = whole.reshape(y.shape)
        return live

    def _unpacked(self, packed: Array) -> Array:
        """(live steps, K, H) in the kernels' order as (K, T, B, H)."""
        steps, batch, device = self._given.steps, self._given.batch, self._network.device
        whole = device.xp.zeros((steps * batch, *packed.shape[1:]), packed.dtype)
        if self._kept is not None:
            whole[device.put(self._kept.places)] = packed
        by_step = whole.reshape(steps, batch, *packed.shape[1:])
        unpacked: Array = device.xp.moveaxis(by_step, 2, 0)
        return unpacked


def run_taped(
    network: Network,
    x: Any,
    state: State | None = None,
    lengths: Any = None,
    out: Array | None = None,
    drops: Drops = NOTHING,
    recompute: int | None = None,
    tbptt: int | None = None,
    asked: Asked | None = None,
) -> tuple[Array, State, Tape]:
    """A call that can be gone back: y, the last state and a tape."""
    # The layer's own, which the caller can write to: those of a twin that lost some are new.
    layout, own_weights = network.layout, () if out is None else network.named_weights()
    whole = recompute is None and tbptt is None
    factors: dict[str, Array] = {}
    if drops.weight_drop > 0.0:
        network, factors = drop_weights(network, drops)
    if out is None and not drops.by_call and whole and asked is None:
        done = network.kernels.direct(x, state, lengths, True)
        if done is not None:  # else something has to be converted, or is wrong
            y, last, kernels_own = done
            given = layout.taken(x, lengths)
            return (
                y,
                last,
                Tape(network, given, layout.time_first(y, given), kernels_own, last, factors),
            )
    given, h, c = layout.input(x, state, lengths, asked)
    result = layout.output(out, given, h, c, own_weights)
    if state is not None:  # the kernels work in place, and these are the caller's
        h, c = h.copy(), None if c is None else c.copy()
    kept: Kept | None = None
    if whole:
        masks = draw(network, given.steps, given.batch, drops)
        kept = forward(network, given, h, c, result, masks, keep=True)
    elif recompute is not None and not given.is_empty:
        from rnnkern.layers.recompute import run_sparsely

        kept = run_sparsely(network, given, h, c, result, recompute, drops)
    elif tbptt is not None and not given.is_empty:
        from rnnkern.layers.pieces import Pieces
        from rnnkern.layers.truncate import Truncated

        kept = Truncated(network, Pieces(network, given, tbptt, drops), h, c, result)
    repeat_outputs(network, given, result)
    y = layout.as_given(result, given) if out is None else out
    last = layout.state_as_given(h, c, given)
    return y, last, Tape(network, given, result, kept, last, factors)


def _top(state: State, spec: LayerSpec) -> Array:
    """H of the top layer, (D, B, P), of a state as a caller has it."""
    h = state[0] if isinstance(state, tuple) else state
    top: Array = h[-spec.directions :].reshape(spec.directions, -1, spec.outputs)
    return top

# SPDX-License-Identifier: Apache-2.0
"""Cells of one step, for those who write the loop over time themselves."""

from __future__ import annotations

from functools import cached_property
from inspect import signature
from typing import Any, ClassVar, SupportsIndex, TypeVar

import numpy as np

from rnnkern._checks import Array, DType, boolean, explains_options, positive_int
from rnnkern.devices import Weights
from rnnkern.layers.arguments import Layout, State
from rnnkern.layers.base import Recurrent, one_step_of
from rnnkern.layers.configured import spec_of
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.functions import of_direction
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.network import Network, run
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.tape import Tape, run_taped
from rnnkern.layers.weights import parameter_kinds

Own = TypeVar("Own", bound="RecurrentCell")


class RecurrentCell(Fixed):
    """What all cells of one step share. Use one of the subclasses.

    A layer runs this step over a whole sequence: it is faster, it knows lengths, and its tape is
    smaller, for each step's tape has its own copy of the parameters. A cell is for loops that a
    layer does not do, as where a step's input depends on what the step before gave.

    Args:
        input_size: I, features of x, or the number of tokens when x is integer.
        hidden_size: H, units.
        activation: of the new value, as of the layers.
        recurrent_activation: of the gates, likewise.
        clip: a bound of pre-activations, likewise.
        layer_norm: whether sums are normalised, likewise.
        bias: whether there are bias parameters.
        dtype: "float32" or "float64", of parameters, input and state.
        compute: how products are done, as of the layers.
        device: "cpu" or "cuda", as of the layers.
        seed: of the initial parameters, which are those of a layer with that seed.
        recurrent_init: "uniform" or "orthogonal", as of the layers.

    Attributes:
        params: ``weight_ih`` (G·H, I), ``weight_hh`` (G·H, H), ``bias`` (G·H) and, where the reset
            gate acts after the product, ``bias_hn`` (H). With ``layer_norm`` also ``gain_ih`` and
            ``gain_hh`` (G·H) and, where there is c, ``gain_c`` and, with a bias, ``shift_c`` (H).
            Those of a cell made by ``of`` are the layer's own arrays. The constructor's arguments
            are attributes too.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range; the message names it.

    Example:
        >>> cells = [rk.RNNCell(3, 4), rk.LSTMCell(3, 4)]
        >>> all(isinstance(cell, rk.RecurrentCell) for cell in cells)
        True

    """

    kind: ClassVar[type[Recurrent]]  # the layer that runs this step over a sequence

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        clip: float | None = None,
        layer_norm: bool = False,
        bias: bool = True,
        dtype: DType = "float32",
        compute: str | None = None,
        device: str = "cpu",
        seed: int | None = None,
        recurrent_init: str = "uniform",
    ) -> None:
        self._share(
            self.kind(
                input_size,
                hidden_size,
                activation=activation,
                recurrent_activation=recurrent_activation,
                clip=clip,
                layer_norm=layer_norm,
                bias=bias,
                dtype=dtype,
                compute=compute,
                device=device,
                seed=seed,
                recurrent_init=recurrent_init,
            )
        )

    @classmethod
    def of(cls: type[Own], layer: Recurrent, k: SupportsIndex = 0, *, reverse: bool = False) -> Own:
        """The step of a layer: the cell's parameters are the layer's own arrays.

        What the layer drops in training is no part of the cell.

        Args:
            layer: of the class that goes with this one, as an `LSTM` for an `LSTMCell`.
            k: which of its stacked layers, from 0.
            reverse: whether its second direction.

        Raises:
            TypeError: the layer is of another class.
            ValueError: it has no such layer or direction, or it has zoneout, of which a call of the
                layer has the mean.

        """
        if type(layer) is not cls.kind:
            raise TypeError(
                f"layer must be of the class {cls.kind.__name__}, got {type(layer).__name__}"
            )
        place = positive_int("k", k, minimum=0)
        if place >= layer.num_layers:
            raise ValueError(f"k must be below num_layers = {layer.num_layers}, got {place}")
        if boolean("reverse", reverse) and not layer.bidirectional:
            raise ValueError("reverse needs a layer with bidirectional=True")
        for name in ("zoneout", "cell_zoneout"):
            if share := getattr(spec_of(layer), name):
                raise ValueError(f"layer must have {name}=0 for a cell of one step, got {share:g}")
        cell = cls.__new__(cls)
        cell._share(layer, place, reverse=reverse)
        return cell

    def _share(self, layer: Recurrent, k: int = 0, *, reverse: bool = False) -> None:
        """Be the step of that layer and direction."""
        self._spec, self._device, own = one_step_of(layer, k, reverse=reverse)
        self.params = Parameters(own)
        self._own = own
        self.input_size, self.hidden_size = self._spec.inputs, self._spec.units
        self.bias, self.dtype, self.compute = self._spec.bias, self._spec.dtype, self._spec.compute
        self.device = self._device.name
        config = {**layer.config(), "input_size": self.input_size}
        names = signature(type(self)).parameters
        self._config = {name: of_direction(config[name], int(reverse)) for name in names}
        for name in self._config.keys() - vars(self).keys():
            setattr(self, name, of_direction(getattr(layer, name), int(reverse)))
        self._settle()

    @property
    def output_size(self) -> int:
        """H, numbers of h; with a projection P."""
        return self._spec.outputs

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal cell can be built."""
        return dict(self._config)

    @cached_property
    def _network(self) -> Network:
        """What runs: one layer in one direction."""
        layout = Layout(self._spec, self._device, False, type(self).__name__)
        own = (None if kind is None else self._own[kind] for kind in parameter_kinds(self._spec))
        return Network(layout, [Weights.of(None if p is None else p.own for p in own)])

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: `_network` names arrays that a copy has anew."""
        return {name: value for name, value in vars(self).items() if name != "_network"}

    def __call__(self, x: Any, state: State | None = None) -> Any:
        """The state after one step; nothing is kept for a backward pass.

        Args:
            x: (B, I) of the cell's dtype, or integer tokens (B,) in 0..I-1; (I,) or one token
                without a batch.
            state: (B, H) or, for an LSTM, a pair of those; (H,) without a batch. None, also as one
                of the pair, is zero.

        Returns:
            The new state: h or, for an LSTM, the pair (h, c). h is the step's output too.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or range.

        """
        sequence, batch = self._sequence(x)
        _, last = run(self._network, sequence, self._lifted("state", state, batch), None, None)
        return _lowered(last)

    def forward(self, x: Any, state: State | None = None) -> tuple[Any, CellTape]:
        """As a call, and a tape: ``(h, c), tape = cell.forward(x, (h, c))`` of an LSTM.

        Leave x and the state that was given unchanged until ``tape.backward``.
        """
        sequence, batch = self._sequence(x)
        _, last, tape = run_taped(self._network, sequence, self._lifted("state", state, batch))
        return _lowered(last), CellTape(self, batch, tape)

    def _sequence(self, x: Any) -> tuple[Array, tuple[int, ...]]:
        """A sequence of one step, and the shape of its batch: (B,), or () without one."""
        array, spec = self._device.array("x", x), self._spec
        tokens = array.dtype.kind in "iu"
        fits = array.ndim < 2 if tokens else array.ndim in (1, 2)
        fits = fits and (tokens or array.shape[-1] == spec.inputs)
        if not fits and (tokens or array.dtype == spec.dtype):  # another dtype is refused later on
            of_numbers = f"(B, {spec.inputs}) or ({spec.inputs},)"
            wanted = "(B,) or () for tokens" if tokens else of_numbers
            raise ValueError(f"x must have shape {wanted}, got {array.shape}")
        return array[np.newaxis], array.shape if tokens else array.shape[:-1]

    def _lifted(self, name: str, state: State | None, batch: tuple[int, ...]) -> Any:
        """A state, or the gradient of one, as a layer of one layer has it."""
        if state is None:
            return None
        names, widths = self._spec.facts.states, self._spec.widths
        several = len(names) > 1
        if isinstance(state, (tuple, list)) != several or (several and len(state) != len(names)):
            wanted = f"the pair ({', '.join(names)})" if several else "one array h"
            raise TypeError(f"{name} must be {wanted} of this {type(self).__name__}, got {state!r}")
        given = state if several else (state,)
        parts = [
            part
            if part is None
            else self._device.shaped(
                f"{name}[{letter!r}]", part, (*batch, width), self._spec.dtype
            )[None]
            for letter, part, width in zip(names, given, widths, strict=True)
        ]
        return (parts[0], parts[1]) if several else parts[0]


class CellTape:
    """What one step's ``forward`` kept. ``backward`` may be called any number of times."""

    def __init__(self, cell: RecurrentCell, batch: tuple[int, ...], tape: Tape) -> None:
        self._cell = cell
        self._batch = batch
        self._tape = tape

    def __repr__(self) -> str:
        return f"CellTape({type(self._cell).__name__}, batch={self._batch})"

    def backward(
        self, dstate: State | None = None, *, into: dict[str, Array] | Gradients | None = None
    ) -> Gradients:
        """Gradients of a loss L through this step.

        Args:
            dstate: ∂L/∂(the new state), shaped as it: what later steps gave, and what the loss adds
                at this one. None, also as one of a pair, is zero.
            into: what later steps' ``backward`` gave, or its gradients by name: this step's are
                added to these, in place; None begins anew.

        Returns:
            `Gradients`, which unpacks to ∂L/∂x (None for tokens), ∂L/∂(the state before), and
            ∂L/∂parameter by name: `into`, where it is given.

        Raises:
            TypeError, ValueError: dstate or `into` has the wrong dtype, shape or names; nothing was
                added then.

        """
        lifted = self._cell._lifted("dstate", dstate, self._batch)
        totals = None if into is None else self._totals(into)
        dx, before, grads = self._tape.backward(None, lifted)
        own = {_kind(name): array for name, array in grads.items()}
        if totals is not None:
            with np.errstate(all="ignore"):
                for name, total in totals.items():
                    total += own[name]
            own = totals
        return Gradients(own, None if dx is None else dx[0], _lowered(before))

    def _totals(self, into: Any) -> dict[str, Array]:
        """The gradients of later steps, checked before one is changed."""
        given = into.params if isinstance(into, Gradients) else into
        if not isinstance(given, dict):
            raise TypeError(f"into must be a dict of gradients by name, got {type(given)!r}")
        device, params = self._cell._device, self._cell.params
        if given.keys() != params.keys():
            raise ValueError(f"into must have the names {', '.join(params)}, got {list(given)}")
        for name, (shape, dtype) in params.specs().items():
            array = device.shaped(f"into[{name!r}]", given[name], shape, dtype)
            if array is not given[name] or not device.writeable(array):
                raise TypeError(
                    f"into[{name!r}] must be a {device.library} array that can be written to"
                )
        return given


def _kind(name: str) -> str:
    """A cell's name of its parameter, by a layer's."""
    return name.removesuffix("_l0")


def _lowered(state: State) -> Any:
    """A layer's state as its one layer's."""
    return tuple(part[0] for part in state) if isinstance(state, tuple) else state[0]

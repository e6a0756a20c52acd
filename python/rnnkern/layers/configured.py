# SPDX-License-Identifier: Apache-2.0
"""What a recurrent layer is built of: its options, checked, and its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnkern._checks import (
    Array,
    DType,
    boolean,
    choice,
    explains_options,
    float_dtype,
    fraction,
    positive_int,
    warn,
)
from rnnkern.devices import MERGES, CellOptions, LayerSpec, get_device, normalising
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.functions import Functions, cell_options, checked, checked_clip
from rnnkern.layers.parameter import Parameter
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.weights import check_sizes, initial_values, parameter_shapes


class Configured(Fixed):
    """The options that all recurrent layers take; `Recurrent` says what they are."""

    gates: tuple[str, ...]

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        reverse: bool = False,
        merge: str = "concat",
        activation: Functions = "tanh",
        recurrent_activation: Functions = "sigmoid",
        clip: float | None = None,
        layer_norm: bool = False,
        batch_first: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        dtype: DType = "float32",
        compute: str | None = None,
        device: str = "cpu",
        seed: int | None = None,
        recurrent_init: str = "uniform",
    ) -> None:
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_layers = positive_int("num_layers", num_layers)
        self.bidirectional = boolean("bidirectional", bidirectional)
        self.reverse = boolean("reverse", reverse)
        self.merge = choice("merge", merge, MERGES)
        if self.bidirectional and self.reverse:
            raise ValueError(
                "reverse must be False with bidirectional=True, which has that direction too"
            )
        if self.merge != "concat" and not self.bidirectional:
            raise ValueError(f"merge={merge!r} needs bidirectional=True: it joins two directions")
        both = self.bidirectional
        self.activation = checked("activation", activation, bidirectional=both)
        self.recurrent_activation = checked(
            "recurrent_activation", recurrent_activation, bidirectional=both
        )
        self.clip = checked_clip("clip", clip)
        self.layer_norm = boolean("layer_norm", layer_norm)
        self.batch_first = boolean("batch_first", batch_first)
        self.bias = boolean("bias", bias)
        self.dropout = fraction("dropout", dropout)
        if self.dropout > 0.0 and self.num_layers == 1:
            warn(f"dropout={dropout!r} does nothing with num_layers=1: it lies between layers")
        self.recurrent_dropout = fraction("recurrent_dropout", recurrent_dropout)
        self.weight_drop = fraction("weight_drop", weight_drop)
        self.zoneout = fraction("zoneout", zoneout)
        self.dtype = float_dtype("dtype", dtype)
        self._device = get_device(device)
        self.device = self._device.name
        self.compute = choice("compute", compute, self._device.computes)
        if self.compute is not None and self.dtype != np.float32:
            raise ValueError(
                f"compute={compute!r} needs dtype='float32', got dtype={self.dtype.name!r}"
            )
        self.seed = None if seed is None else positive_int("seed", seed, minimum=0)
        self.recurrent_init = choice("recurrent_init", recurrent_init, ("uniform", "orthogonal"))
        self._spec = LayerSpec(
            self._kernels_cell(),
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.num_directions,
            self.bias,
            self.dtype,
            self.compute,
            self.reverse,
            self.merge,
            self._projection,
            self._options(),
            self.recurrent_dropout,
            self.zoneout,
            self._cell_zoneout,
        )
        if self._spec.options is not None and not self._spec.facts.recurrent_product:
            raise ValueError(
                "activation, recurrent_activation and clip must be left out for "
                f"{type(self).__name__}, whose functions are its own"
            )
        if self.layer_norm:
            for name in ("recurrent_dropout", "zoneout"):
                if share := getattr(self, name):
                    raise ValueError(f"{name} must be 0 with layer_norm=True, got {share:g}")
        for name in ("recurrent_dropout", "weight_drop"):
            share = getattr(self, name)
            if share > 0.0 and not self._spec.facts.recurrent_product:
                raise ValueError(
                    f"{name} must be 0 for {type(self).__name__}, which has no recurrent matrix, "
                    f"got {share:g}"
                )
        self._device.check(self._spec)
        check_sizes(self._spec)
        self._parameters = {
            name: Parameter(name, shape, self.dtype, self._device)
            for name, shape in parameter_shapes(self._spec).items()
        }
        self.params = Parameters(self._parameters, (a for _, a in self._initial_values()))
        self._settle()

    @property
    def num_directions(self) -> int:
        """D: 2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of y: D·H, or H where ``merge`` makes one of the two directions.

        With a projection h has P numbers in the place of H.
        """
        return self._spec.features

    @property
    def _cell(self) -> str:
        """The kernel's name of the cell."""
        raise NotImplementedError

    def _kernels_cell(self) -> str:
        """That, or its twin that normalises."""
        if not self.layer_norm:
            return self._cell
        twin = normalising(self._cell)
        if twin is None:
            raise ValueError(
                f"layer_norm must be False for {type(self).__name__}, which has no recurrent "
                "product to normalise"
            )
        return twin

    @property
    def _projection(self) -> int:
        """P, of a cell that projects h; else 0."""
        return 0

    @property
    def _cell_zoneout(self) -> float:
        """The share of c, of a cell that has it, that keeps its value."""
        return 0.0

    def _options(self) -> tuple[CellOptions, ...] | None:
        """What the kernels are told of the functions; None for the cell's own."""
        return cell_options(
            self._cell,
            self.num_directions,
            self.recurrent_activation,
            self.activation,
            self.activation,
            self.clip,
            None,
        )

    def _initial_values(self) -> Iterator[tuple[str, Array]]:
        """For each parameter in turn its name and values, in host memory."""
        return initial_values(self._spec, self.seed, self.recurrent_init)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal layer can be built."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "reverse": self.reverse,
            "merge": self.merge,
            "activation": self.activation,
            "recurrent_activation": self.recurrent_activation,
            "clip": self.clip,
            "layer_norm": self.layer_norm,
            "batch_first": self.batch_first,
            "bias": self.bias,
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "weight_drop": self.weight_drop,
            "zoneout": self.zoneout,
            "dtype": self.dtype.name,
            "compute": self.compute,
            "device": self.device,
            "seed": self.seed,
            "recurrent_init": self.recurrent_init,
        }

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: `_network` names arrays that a copy has anew."""
        made_anew = ("_network", "_shares")
        return {name: value for name, value in vars(self).items() if name not in made_anew}


def spec_of(layer: Configured) -> LayerSpec:
    """A layer as devices know it."""
    return layer._spec


def state_names(layer: Configured) -> tuple[str, ...]:
    """Of the parts of a layer's state: h, and c where the cell has one."""
    return layer._spec.facts.states

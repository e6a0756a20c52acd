# SPDX-License-Identifier: Apache-2.0
"""Modules of the cells that PyTorch lacks; their parameters are named and signed as our layers'."""

from __future__ import annotations

from typing import Any

import torch

from rnnkern.cells import layer_classes
from rnnkern.layers.configured import spec_of
from rnnkern.layers.parameters import undrawn
from rnnkern.layers.weights import parameter_shapes
from rnnkern.torch.modules import Layered, check_compute


class Own(Layered, torch.nn.Module):  # type: ignore[misc]
    """What they share. Use one of the subclasses; arguments are those of `torch.nn.GRU`."""

    _theirs = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        compute: str | None = None,
    ) -> None:
        super().__init__()
        twin = undrawn(
            layer_classes()[self._kind],
            {
                "input_size": input_size,
                "hidden_size": hidden_size,
                "num_layers": num_layers,
                "bias": bias,
                "dropout": dropout,
                "bidirectional": bidirectional,
            },
        )
        self.input_size, self.hidden_size = twin.input_size, twin.hidden_size
        self.num_layers, self.bias, self.batch_first = twin.num_layers, twin.bias, batch_first
        self.dropout, self.bidirectional = twin.dropout, twin.bidirectional
        self.compute = check_compute(compute)
        shapes = parameter_shapes(spec_of(twin))
        self._names = tuple(shapes)
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, torch.nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew, uniform in ±1/√H."""
        bound = self.hidden_size**-0.5
        for weight in self.parameters():
            torch.nn.init.uniform_(weight, -bound, bound)

    @property
    def _flat_weights(self) -> list[Any]:  # type: ignore[override]
        return [getattr(self, name) for name in self._names]

    def extra_repr(self) -> str:
        """The arguments that are not as by default."""
        text = f"{self.input_size}, {self.hidden_size}"
        for name, default in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
            ("compute", None),
        ):
            value = getattr(self, name)
            text += "" if value == default else f", {name}={value!r}"
        return text


class SimplifiedGRU(Own):
    """Our `rnnkern.SimplifiedGRU` as a module; arguments are those of `torch.nn.GRU`."""

    _kind = "SimplifiedGRU"


class MGU(Own):
    """Our `rnnkern.MGU` as a module; arguments are those of `torch.nn.GRU`."""

    _kind = "MGU"


class MinGRU(Own):
    """Our `rnnkern.MinGRU` as a module; arguments are those of `torch.nn.GRU`."""

    _kind = "MinGRU"


class MinLSTM(Own):
    """Our `rnnkern.MinLSTM` as a module; arguments are those of `torch.nn.GRU`."""

    _kind = "MinLSTM"


class IndRNN(Own):
    """Our `rnnkern.IndRNN` as a module; arguments are those of `torch.nn.GRU`."""

    _kind = "IndRNN"

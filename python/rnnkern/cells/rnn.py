# SPDX-License-Identifier: Apache-2.0
"""The simple recurrent network."""

from __future__ import annotations

from typing import Any

from rnnkern._checks import DType, boolean, explains_options
from rnnkern.cells.entry import Cell
from rnnkern.devices import cell_facts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell
from rnnkern.layers.functions import Functions, checked


class RNN(Recurrent):
    """The simple recurrent network (Elman 1990): h_t = f(W_hh h_{t-1} + W_xh x_t + b_h).

    Args as in `Recurrent`, but for ``activation`` and ``recurrent_activation``, in whose place
    there is ``nonlinearity``, f: "tanh", "relu" or another function (see `Recurrent`).

    Example:
        >>> rnn = rk.RNN(3, 4, nonlinearity="relu", seed=0)
        >>> y, h = rnn(np.ones((5, 2, 3), np.float32))
        >>> y.shape, h.shape
        ((5, 2, 4), (1, 2, 4))

    """

    gates = cell_facts("rnn_tanh").gates

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Functions = "tanh",
        clip: float | None = None,
        layer_norm: bool = False,
        bidirectional: bool = False,
        reverse: bool = False,
        merge: str = "concat",
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
        self.nonlinearity = checked(
            "nonlinearity", nonlinearity, bidirectional=boolean("bidirectional", bidirectional)
        )
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            reverse=reverse,
            merge=merge,
            activation=self.nonlinearity,
            clip=clip,
            layer_norm=layer_norm,
            batch_first=batch_first,
            bias=bias,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            weight_drop=weight_drop,
            zoneout=zoneout,
            dtype=dtype,
            compute=compute,
            device=device,
            seed=seed,
            recurrent_init=recurrent_init,
        )

    @property
    def _cell(self) -> str:
        return "rnn_relu" if self.nonlinearity == "relu" else "rnn_tanh"

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal layer can be built."""
        config = super().config()
        del config["activation"], config["recurrent_activation"]
        return {**config, "nonlinearity": self.nonlinearity}


class RNNCell(RecurrentCell):
    """One step of an `RNN`: ``h = cell(x, h)``.

    Args as in `RecurrentCell`, with ``nonlinearity`` in place of the activations, as of the layer.

    Example:
        >>> cell = rk.RNNCell(3, 4)
        >>> h = cell(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))

    """

    kind = RNN
    nonlinearity: str

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        nonlinearity: str = "tanh",
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
            RNN(
                input_size,
                hidden_size,
                nonlinearity=nonlinearity,
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


CELLS = (Cell("rnn", "simple RNN", RNN, RNNCell),)

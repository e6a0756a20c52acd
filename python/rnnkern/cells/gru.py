# SPDX-License-Identifier: Apache-2.0
"""The gated recurrent unit."""

from __future__ import annotations

from typing import Any

from rnnkern._checks import DType, choice, explains_options
from rnnkern.cells.entry import Cell
from rnnkern.devices import cell_facts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell
from rnnkern.layers.functions import Functions


class GRU(Recurrent):
    """The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

    r_t, u_t = σ(W_h h_{t-1} + W_x x_t + b); h_t = u_t·n_t + (1 - u_t)·h_{t-1}, and with
    ``reset="before"`` n_t = tanh(W_hn (r_t·h_{t-1}) + W_xn x_t + b_n), with ``reset="after"``
    n_t = tanh(r_t·(W_hn h_{t-1} + b_hn) + W_xn x_t + b_n). Parameters' rows stack r, u, n. Args as
    in `Recurrent`. With another ``recurrent_activation`` f the update gate is 1 - f(-a), which for
    σ is σ(a): so others compute it, whose gate weighs h_{t-1}.

    Example:
        >>> gru = rk.GRU(3, 4, seed=0)
        >>> y, h, tape = gru.forward(np.ones((5, 2, 3), np.float32))
        >>> gradients = tape.backward(np.ones_like(y))
        >>> gradients.params["weight_ih_l0"].shape
        (12, 3)

    """

    gates = cell_facts("gru_before").gates

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset: str = "before",
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
        self.reset = choice("reset", reset, ("before", "after"))
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            reverse=reverse,
            merge=merge,
            activation=activation,
            recurrent_activation=recurrent_activation,
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
        return f"gru_{self.reset}"

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal layer can be built."""
        return {**super().config(), "reset": self.reset}


class GRUCell(RecurrentCell):
    """One step of a `GRU`: ``h = cell(x, h)``.

    Args as in `RecurrentCell`, and ``reset``: "before" or "after", as of the layer.

    Example:
        >>> cell = rk.GRUCell(3, 4, reset="after")
        >>> h = cell(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))

    """

    kind = GRU
    reset: str

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        reset: str = "before",
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
            GRU(
                input_size,
                hidden_size,
                reset=reset,
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


CELLS = (
    Cell("gru", "GRU", GRU, GRUCell, {"reset": "before"}),
    Cell("gru-after", "GRU, reset after", GRU, GRUCell, {"reset": "after"}),
)

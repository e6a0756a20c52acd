# SPDX-License-Identifier: Apache-2.0
"""The cells as layers: simple RNN, simplified GRU, GRU, minimal gated unit and LSTM."""

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
    finite_float,
    float_dtype,
)
from rnnkern.devices import cell_facts
from rnnkern.layers.base import Recurrent


class RNN(Recurrent):
    """The simple recurrent network (Elman 1990): h_t = f(W_hh h_{t-1} + W_xh x_t + b_h).

    Args as in `Recurrent`, and ``nonlinearity``, f: "tanh" or "relu".

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
        nonlinearity: str = "tanh",
        bidirectional: bool = False,
        batch_first: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        dtype: DType = "float32",
        compute: str | None = None,
        device: str = "cpu",
        seed: int | None = None,
        recurrent_init: str = "uniform",
    ) -> None:
        self.nonlinearity = choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            batch_first=batch_first,
            bias=bias,
            dropout=dropout,
            dtype=dtype,
            compute=compute,
            device=device,
            seed=seed,
            recurrent_init=recurrent_init,
        )

    @property
    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal layer can be built."""
        return {**super().config(), "nonlinearity": self.nonlinearity}


class SimplifiedGRU(Recurrent):
    """The GRU without a reset gate.

    u_t = σ(W_hu h_{t-1} + W_xu x_t + b_u), n_t = tanh(W_hn h_{t-1} + W_xn x_t + b_n),
    h_t = u_t·n_t + (1 - u_t)·h_{t-1}. Parameters' rows stack u, n. Args as in `Recurrent`.

    Example:
        >>> layer = rk.SimplifiedGRU(3, 4, seed=0)
        >>> layer.gates, layer.params["weight_hh_l0"].shape
        (('u', 'n'), (8, 4))

    """

    gates = cell_facts("simplified_gru").gates

    @property
    def _cell(self) -> str:
        return "simplified_gru"


class GRU(Recurrent):
    """The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

    r_t, u_t = σ(W_h h_{t-1} + W_x x_t + b); h_t = u_t·n_t + (1 - u_t)·h_{t-1}, and with
    ``reset="before"`` n_t = tanh(W_hn (r_t·h_{t-1}) + W_xn x_t + b_n), with ``reset="after"``
    n_t = tanh(r_t·(W_hn h_{t-1} + b_hn) + W_xn x_t + b_n). Parameters' rows stack r, u, n. Args as
    in `Recurrent`.

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
        batch_first: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
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
            batch_first=batch_first,
            bias=bias,
            dropout=dropout,
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


class MGU(Recurrent):
    """The minimal gated unit (Zhou et al. 2016, arXiv:1603.09420): one gate resets and updates.

    f_t = σ(W_hf h_{t-1} + W_xf x_t + b_f), n_t = tanh(W_hn (f_t·h_{t-1}) + W_xn x_t + b_n),
    h_t = f_t·n_t + (1 - f_t)·h_{t-1}. Parameters' rows stack f, n. Args as in `Recurrent`.

    Example:
        >>> layer = rk.MGU(3, 4, seed=0)
        >>> y, h = layer(np.ones((5, 2, 3), np.float32))
        >>> bool((y[-1] == h[0]).all())
        True

    """

    gates = cell_facts("minimal_gated").gates

    @property
    def _cell(self) -> str:
        return "minimal_gated"


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    u_t, f_t, o_t = σ(W_h h_{t-1} + W_x x_t + b), n_t = tanh(W_hn h_{t-1} + W_xn x_t + b_n),
    c_t = u_t·n_t + f_t·c_{t-1}, h_t = o_t·tanh(c_t). Parameters' rows stack u, f, n, o; a state is
    the pair (h, c). Args as in `Recurrent`, and ``forget_bias``: the forget gate's initial bias
    (Jozefowicz et al. 2015 advise 1), None for the same as the others'.

    Example:
        >>> lstm = rk.LSTM(3, 4, forget_bias=1.0, bidirectional=True, seed=0)
        >>> x = np.ones((5, 2, 3), np.float32)
        >>> y, (h, c) = lstm(x, lengths=[5, 2])
        >>> y.shape, c.shape
        ((5, 2, 8), (2, 2, 4))

    """

    gates = cell_facts("lstm").gates

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        forget_bias: float | None = None,
        bidirectional: bool = False,
        batch_first: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        dtype: DType = "float32",
        compute: str | None = None,
        device: str = "cpu",
        seed: int | None = None,
        recurrent_init: str = "uniform",
    ) -> None:
        most = float(np.finfo(float_dtype("dtype", dtype)).max)
        self.forget_bias = (
            None
            if forget_bias is None
            else finite_float("forget_bias", forget_bias, minimum=-most, maximum=most)
        )
        if self.forget_bias is not None and not boolean("bias", bias):
            raise ValueError(f"forget_bias must be None when bias is False, got {forget_bias!r}")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            batch_first=batch_first,
            bias=bias,
            dropout=dropout,
            dtype=dtype,
            compute=compute,
            device=device,
            seed=seed,
            recurrent_init=recurrent_init,
        )

    @property
    def _cell(self) -> str:
        return "lstm"

    def _initial_values(self) -> Iterator[tuple[str, Array]]:
        for name, array in super()._initial_values():
            if self.forget_bias is not None and name.startswith("bias_"):
                array[self.hidden_size : 2 * self.hidden_size] = self.forget_bias
            yield name, array

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal layer can be built."""
        return {**super().config(), "forget_bias": self.forget_bias}

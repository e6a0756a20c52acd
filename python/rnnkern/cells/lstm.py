# SPDX-License-Identifier: Apache-2.0
"""Long short-term memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnkern._checks import (
    Array,
    DType,
    boolean,
    explains_options,
    finite_float,
    float_dtype,
    fraction,
    positive_int,
)
from rnnkern.cells.entry import Cell
from rnnkern.devices import CellOptions, cell_facts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell
from rnnkern.layers.functions import (
    Functions,
    cell_options,
    checked,
    checked_clip,
)


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    With the input gate u, the forget gate f, the output gate o and the candidate n, which others
    call i, f, o and g:
    u_t, f_t, o_t = σ(W_h h_{t-1} + W_x x_t + b), n_t = tanh(W_hn h_{t-1} + W_xn x_t + b_n),
    c_t = u_t·n_t + f_t·c_{t-1}, h_t = o_t·tanh(c_t). Parameters' rows stack u, f, n, o; a state is
    the pair (h, c). Args as in `Recurrent`, and

    - ``forget_bias``: the forget gate's initial bias (Jozefowicz et al. 2015 advise 1), None for
      the same as the others'.
    - ``proj_size``: P, for h to be a projection of what the cell gives (Sak et al. 2014,
      arXiv:1402.1128): h_t = W_hr (o_t·tanh(c_t)). Then h and y of a direction have P numbers,
      fewer than H, and c has H; ``weight_hh`` is (4·H, P), and ``params["weight_hr_l{k}"]`` (P, H)
      is W_hr. 0 for none.
    - ``peepholes``: whether the gates also see c (Gers, Schraudolph & Schmidhuber 2002): u_t and
      f_t c_{t-1}, o_t c_t, each unit its own. The weights are ``params["weight_peephole_l{k}"]``
      (3, H), for u, f and o.
    - ``coupled``: whether f_t = 1 - u_t (Greff et al. 2017, arXiv:1503.04069), so that there are
      three gates u, n, o, and two peepholes, of u and o.
    - ``output_activation``: in place of the tanh in h_t = o_t·tanh(c_t); None for ``activation``,
      which stands for both.
    - ``cell_clip``: c_t is held within ±cell_clip, as TensorFlow's and ELMo's LSTMs do; no gradient
      passes where it is.
    - ``cell_zoneout``: as ``zoneout``, of c; h_t is made of the c that the step gave.

    ``proj_size`` needs ``device="cpu"``; neither it nor ``peepholes`` or ``cell_zoneout`` goes with
    ``layer_norm``.

    Example:
        >>> lstm = rk.LSTM(3, 4, forget_bias=1.0, bidirectional=True, seed=0)
        >>> x = np.ones((5, 2, 3), np.float32)
        >>> y, (h, c) = lstm(x, lengths=[5, 2])
        >>> y.shape, c.shape
        ((5, 2, 8), (2, 2, 4))
        >>> y, (h, c) = rk.LSTM(3, 64, proj_size=16)(x)
        >>> y.shape, h.shape, c.shape
        ((5, 2, 16), (1, 2, 16), (1, 2, 64))

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
        proj_size: int = 0,
        peepholes: bool = False,
        coupled: bool = False,
        bidirectional: bool = False,
        reverse: bool = False,
        merge: str = "concat",
        activation: Functions = "tanh",
        recurrent_activation: Functions = "sigmoid",
        clip: float | None = None,
        layer_norm: bool = False,
        output_activation: Functions | None = None,
        cell_clip: float | None = None,
        batch_first: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        cell_zoneout: float = 0.0,
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
        self.peepholes = boolean("peepholes", peepholes)
        self.coupled = boolean("coupled", coupled)
        self.gates = cell_facts(self._cell).gates
        self.proj_size = positive_int("proj_size", proj_size, minimum=0)
        if self.proj_size >= positive_int("hidden_size", hidden_size):
            raise ValueError(
                f"proj_size must be below hidden_size = {hidden_size}, or 0 for no projection, "
                f"got {proj_size}"
            )
        both = boolean("bidirectional", bidirectional)
        self.output_activation = (
            None
            if output_activation is None
            else checked("output_activation", output_activation, bidirectional=both)
        )
        self.cell_clip = checked_clip("cell_clip", cell_clip)
        self.cell_zoneout = fraction("cell_zoneout", cell_zoneout)
        if boolean("layer_norm", layer_norm):
            self._check_normalised()
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

    def _check_normalised(self) -> None:
        """Refuse what does not go with layer_norm."""
        if self.proj_size:
            raise ValueError(
                f"proj_size must be 0 with layer_norm=True, got {self.proj_size}: of a projection "
                "nothing is known that normalises it"
            )
        if self.peepholes:
            raise ValueError(
                "peepholes must be False with layer_norm=True: they would see c as it is, which is "
                "normalised for h alone"
            )
        if self.cell_zoneout:
            raise ValueError(
                f"cell_zoneout must be 0 with layer_norm=True, got {self.cell_zoneout:g}"
            )

    @property
    def _cell(self) -> str:
        return f"lstm{'_peephole' * self.peepholes}{'_coupled' * self.coupled}"

    @property
    def _projection(self) -> int:
        return self.proj_size

    @property
    def _cell_zoneout(self) -> float:
        return self.cell_zoneout

    def _options(self) -> tuple[CellOptions, ...] | None:
        return cell_options(
            self._cell,
            self.num_directions,
            self.recurrent_activation,
            self.activation,
            self.output_activation or self.activation,
            self.clip,
            self.cell_clip,
        )

    def _initial_values(self) -> Iterator[tuple[str, Array]]:
        for name, array in super()._initial_values():
            if self.forget_bias is not None and name.startswith("bias_"):
                blocks = array.reshape(len(self.gates), self.hidden_size)
                if self.coupled:  # f = 1 - σ(a) = σ(-a)
                    blocks[self.gates.index("u")] = -self.forget_bias
                else:
                    blocks[self.gates.index("f")] = self.forget_bias
            yield name, array

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal layer can be built."""
        return {
            **super().config(),
            "forget_bias": self.forget_bias,
            "proj_size": self.proj_size,
            "peepholes": self.peepholes,
            "coupled": self.coupled,
            "output_activation": self.output_activation,
            "cell_clip": self.cell_clip,
            "cell_zoneout": self.cell_zoneout,
        }


class LSTMCell(RecurrentCell):
    """One step of an `LSTM`: ``h, c = cell(x, (h, c))``.

    Args as in `RecurrentCell`, and ``forget_bias``, ``proj_size``, ``peepholes``, ``coupled``,
    ``output_activation`` and ``cell_clip``, as of the layer.

    Example: a loop over time, and its gradients.
        >>> cell = rk.LSTMCell(3, 4, seed=0)
        >>> x = np.ones((5, 2, 3), np.float32)  # (T, B, I)
        >>> h = c = np.zeros((2, 4), np.float32)
        >>> tapes = []
        >>> for x_t in x:
        ...     (h, c), tape = cell.forward(x_t, (h, c))
        ...     tapes.append(tape)
        >>> dstate, grads = (np.ones_like(h), None), None  # of the loss h.sum()
        >>> for tape in reversed(tapes):
        ...     dx, dstate, grads = tape.backward(dstate, into=grads)

    """

    kind = LSTM
    forget_bias: float | None
    proj_size: int
    peepholes: bool
    coupled: bool
    output_activation: str | None
    cell_clip: float | None

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        forget_bias: float | None = None,
        proj_size: int = 0,
        peepholes: bool = False,
        coupled: bool = False,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        clip: float | None = None,
        layer_norm: bool = False,
        output_activation: str | None = None,
        cell_clip: float | None = None,
        bias: bool = True,
        dtype: DType = "float32",
        compute: str | None = None,
        device: str = "cpu",
        seed: int | None = None,
        recurrent_init: str = "uniform",
    ) -> None:
        self._share(
            LSTM(
                input_size,
                hidden_size,
                forget_bias=forget_bias,
                proj_size=proj_size,
                peepholes=peepholes,
                coupled=coupled,
                activation=activation,
                recurrent_activation=recurrent_activation,
                clip=clip,
                layer_norm=layer_norm,
                output_activation=output_activation,
                cell_clip=cell_clip,
                bias=bias,
                dtype=dtype,
                compute=compute,
                device=device,
                seed=seed,
                recurrent_init=recurrent_init,
            )
        )


CELLS = (Cell("lstm", "LSTM", LSTM, LSTMCell),)

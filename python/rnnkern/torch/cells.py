# SPDX-License-Identifier: Apache-2.0
"""Modules of one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rnnkern.torch.calls import TWO_STATES, Spec
from rnnkern.torch.functions import run


class Stepping:
    """How modules of one step are called; a mixin for `torch.nn.Module`."""

    _kind: str
    _option = ""

    input_size: int
    hidden_size: int
    bias: bool

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The state after one step.

        Args:
            input: (B, I) or (I,), of the dtype of the parameters, on the CPU.
            hx: the state before, as PyTorch has it, or None for zero.

        Returns:
            h (B, H) or the pair (h, c); without a batch axis, if the input has none.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or range.

        """
        if input.dim() not in (1, 2):
            raise ValueError(f"input must have shape (B, I) or (I,), got {tuple(input.shape)}")
        two = self._kind in TWO_STATES
        h, c = (None, None) if hx is None else hx if two else (hx, None)
        for state in (h, c):
            if state is not None and state.dim() != input.dim():
                raise ValueError(
                    f"hx must have as many axes as input, got {state.dim()} and {input.dim()}"
                )
        x, batched = input, input.dim() == 2
        if not batched:
            x = x.unsqueeze(0)
            h, c = (None if s is None else s.unsqueeze(0) for s in (h, c))
        h, c = (None if s is None else s.unsqueeze(0) for s in (h, c))
        _, h, c = run(self._spec(), x.unsqueeze(0), h, c, self._weights(), None, training=False)
        h, c = (None if s is None else s.squeeze(0) for s in (h, c))
        if not batched:
            h, c = (None if s is None else s.squeeze(0) for s in (h, c))
        return (h, c) if two else h

    def _weights(self) -> Sequence[Any]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        return [getattr(self, name) for name in names]

    def _spec(self) -> Spec:
        return Spec(
            self._kind,
            self._option,
            self.input_size,
            self.hidden_size,
            1,
            False,
            bool(self.bias),
            0.0,
            None,
            True,
        )


class RNNCell(Stepping, torch.nn.RNNCell):  # type: ignore[misc]
    """`torch.nn.RNNCell` on our kernels; a whole sequence is faster through `RNN`."""

    _kind = "RNN"

    @property
    def _option(self) -> str:  # type: ignore[override]
        return str(self.nonlinearity)


class GRUCell(Stepping, torch.nn.GRUCell):  # type: ignore[misc]
    """`torch.nn.GRUCell` on our kernels; a whole sequence is faster through `GRU`."""

    _kind = "GRU"
    _option = "after"


class LSTMCell(Stepping, torch.nn.LSTMCell):  # type: ignore[misc]
    """`torch.nn.LSTMCell` on our kernels; a whole sequence is faster through `LSTM`."""

    _kind = "LSTM"

# SPDX-License-Identifier: Apache-2.0
"""PyTorch's recurrent modules on our kernels: the same classes, arguments and state dicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnkern._checks import DType, choice, float_dtype
from rnnkern.layers.base import Recurrent
from rnnkern.layers.frozen import Frozen
from rnnkern.layers.parameters import undrawn
from rnnkern.torch.calls import TWO_STATES, Spec, twin_of
from rnnkern.torch.functions import run

_COMPUTES = (None, "bfloat16")


class Layered:
    """How modules of stacked layers are called; a mixin for `torch.nn.Module`.

    A subclass says what cell it is in `_kind`, `_option` and `_theirs`.
    """

    compute: str | None = None
    _kind: str
    _theirs = True
    _option = ""
    _frozen: Frozen | None = None

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    training: bool
    _flat_weights: list[Any]

    def forward(self, input: Any, hx: Any = None, *, lengths: Any = None) -> tuple[Any, Any]:
        """Run a sequence, as PyTorch's modules do.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I), or a ``PackedSequence``. Of
                the dtype of the parameters, on the CPU; or integer tokens, without the last axis.
            hx: the initial state as PyTorch has it, or None for zero.
            lengths: of the rows (B,), integers on the CPU: a padded input needs no packing. Past a
                row's length y is 0.

        Returns:
            y, packed if the input was, and the last state h or the pair (h, c).

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or range.
            RuntimeError: a second derivative is asked for, in its backward pass.

        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        two = self._kind in TWO_STATES
        h, c = _pair(hx) if two else (hx, None)
        x = input
        batched = x.dim() == (3 if x.is_floating_point() else 2)
        if not batched:
            x = x.unsqueeze(1)
            h, c = (None if s is None else s.unsqueeze(1) for s in (h, c))
        elif self.batch_first:
            x = x.transpose(0, 1)
        y, h, c = self._run(x, h, c, lengths)
        if not batched:
            y, h, c = y.squeeze(1), h.squeeze(1), c if c is None else c.squeeze(1)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, ((h, c) if two else h)

    def _packed(self, packed: Any, hx: Any) -> tuple[Any, Any]:
        """Rows by falling length, as the pack has them, and their states with them."""
        two = self._kind in TWO_STATES
        states = [None, None] if hx is None else list(_pair(hx)) if two else [hx, None]
        if packed.sorted_indices is not None:
            states = [s if s is None else s.index_select(1, packed.sorted_indices) for s in states]
        sorted_rows = PackedSequence(packed.data, packed.batch_sizes)
        padded, lengths = pad_packed_sequence(sorted_rows)
        y, *last = self._run(padded, states[0], states[1], lengths)
        found = pack_padded_sequence(y, lengths)
        y = PackedSequence(
            found.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        if packed.unsorted_indices is not None:
            last = [s if s is None else s.index_select(1, packed.unsorted_indices) for s in last]
        return y, (tuple(last) if two else last[0])

    def _run(self, x: Any, h: Any, c: Any, lengths: Any) -> tuple[Any, Any, Any]:
        """Tensors time first and batched."""
        weights = self._flat_weights
        spec = self._spec()
        if x.dtype != weights[0].dtype and torch.is_autocast_enabled("cpu"):
            x = x.to(weights[0].dtype) if x.is_floating_point() else x
        if self._frozen is not None and not torch.compiler.is_compiling():
            return _run_frozen(self._frozen, x, h, c, lengths)
        return run(spec, x, h, c, weights, lengths, training=self.training)

    def _spec(self) -> Spec:
        compute = self.compute
        if compute is None and torch.is_autocast_enabled("cpu"):
            narrow = torch.get_autocast_dtype("cpu") == torch.bfloat16
            compute = "bfloat16" if narrow else None
        return Spec(
            self._kind,
            self._option,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.bias,
            self.dropout,
            compute,
            self._theirs,
            getattr(self, "proj_size", 0),
        )

    def to_layer(self, *, dtype: DType | None = None, device: str = "cpu") -> Recurrent:
        """A layer of rnnkern with a copy of the parameters, as `rnnkern.from_torch` gives it."""
        spec = self._spec()
        weights = [w.detach().cpu().contiguous() for w in self._flat_weights]
        twin = twin_of(spec, weights).layer
        config = {**twin.config(), "batch_first": self.batch_first, "device": device}
        if dtype is not None:
            config["dtype"] = float_dtype("dtype", dtype).name
        layer: Recurrent = undrawn(type(twin), config)
        layer.params.fill({n: np.asarray(a, layer.dtype) for n, a in twin.params.items()})
        return layer

    def freeze(self) -> None:
        """Pack the parameters as they are now, for inference.

        Calls then have no gradients, and run what was packed, whatever is written to the
        parameters, until `unfreeze`.
        """
        spec = self._spec()._replace(dropout=0.0)
        self._frozen = twin_of(spec, [w.detach() for w in self._flat_weights]).layer.freeze()

    def unfreeze(self) -> None:
        """Have calls read the parameters again."""
        self._frozen = None


def _run_frozen(frozen: Frozen, x: Any, h: Any, c: Any, lengths: Any) -> tuple[Any, Any, Any]:
    """A call of packed weights."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h, c)):
        raise RuntimeError("a frozen module has no gradients: unfreeze() gives them back")
    arrays = [None if t is None else t.detach().numpy() for t in (x, h, c, lengths)]
    state: Any = arrays[1] if c is None else tuple(arrays[1:3])
    y, last = frozen(arrays[0], state, arrays[3])
    first, second = last if isinstance(last, tuple) else (last, None)
    of_c = None if second is None else torch.from_numpy(second)
    return torch.from_numpy(y), torch.from_numpy(first), of_c


def _pair(hx: Any) -> tuple[Any, Any]:
    """An LSTM's state."""
    if hx is None:
        return None, None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"hx must be the pair (h_0, c_0), got {type(hx)!r}")
    return hx[0], hx[1]


def check_compute(compute: str | None) -> str | None:
    """How products are done, if the CPU can."""
    return choice("compute", compute, _COMPUTES)


# Their base is that of RNN, GRU and LSTM there: of those the compiler refuses every instance.


class RNN(Layered, torch.nn.RNNBase):  # type: ignore[misc]
    """`torch.nn.RNN` on our kernels: its arguments and state dict, and ``compute``.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: stacked on one another.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: whether input and output are (B, T, ·).
        dropout: between layers, in training.
        bidirectional: whether to run from the last step to the first, too.
        device: of the parameters: the CPU.
        dtype: torch.float32 or torch.float64.
        compute: "bfloat16" rounds the operands of products, as our layers do; None keeps them.

    """

    _kind = "RNN"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        compute: str | None = None,
    ) -> None:
        mode = f"RNN_{choice('nonlinearity', nonlinearity, ('tanh', 'relu')).upper()}"
        super().__init__(
            mode,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity
        self.compute = check_compute(compute)

    @property
    def _option(self) -> str:  # type: ignore[override]
        return str(self.nonlinearity)


class GRU(Layered, torch.nn.RNNBase):  # type: ignore[misc]
    """`torch.nn.GRU` on our kernels: its arguments and state dict, ``compute`` and ``reset``.

    Args as of `RNN`, and ``reset``: "after" the recurrent product, as PyTorch's, or "before" it, as
    Cho et al. 2014 have it; the parameters are the same, and their two biases add up.
    """

    _kind = "GRU"
    _option = "after"

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
        reset: str = "after",
    ) -> None:
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.compute = check_compute(compute)
        self._option = choice("reset", reset, ("after", "before"))


class LSTM(Layered, torch.nn.RNNBase):  # type: ignore[misc]
    """`torch.nn.LSTM` on our kernels: its arguments and state dict, and ``compute``.

    Args as of `RNN`, and ``proj_size``: P, of h as a projection of what the cell gives; 0 for none.
    """

    _kind = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        compute: str | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )
        self.compute = check_compute(compute)

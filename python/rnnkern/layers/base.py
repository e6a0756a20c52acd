# SPDX-License-Identifier: Apache-2.0
"""What all recurrent layers share.

Shapes, with T steps, B rows of a batch, I inputs, H units, L layers and D directions: x (T, B, I),
y (T, B, D·H), every state (L·D, B, H). ``batch_first`` swaps the first two axes of x and y, and
an x without its batch axis gives results without theirs. Integer x (T, B) stands for one-hot rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, SupportsIndex

import numpy as np

from rnnkern._checks import (
    Array,
    DType,
    boolean,
    choice,
    explains_options,
    finite_float,
    float_dtype,
    positive_int,
    warn,
)
from rnnkern.devices import LayerSpec, Weights, get_device
from rnnkern.layers.arguments import Layout, State, check_dropout_key
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.frozen import Frozen
from rnnkern.layers.network import Network, dropout_masks, forward, run
from rnnkern.layers.parameters import Parameter, Parameters
from rnnkern.layers.stream import Stream
from rnnkern.layers.tape import Tape
from rnnkern.layers.weights import (
    check_sizes,
    initial_values,
    parameter_names,
    parameter_shapes,
)


class Recurrent(Fixed):
    """What all recurrent layers share. Use one of the subclasses.

    Args:
        input_size: I, features of x, or the number of tokens when x is integer.
        hidden_size: H, units of each layer and direction.
        num_layers: layers stacked on one another.
        bidirectional: also run from the last step to the first; y holds both directions' states.
        batch_first: x and y are (B, T, ·).
        bias: whether there are bias parameters.
        dropout: share of each layer's output, but the last one's, that ``forward`` sets to zero;
            with one layer it does nothing, of which there is a warning.
        dtype: "float32" or "float64", of parameters, input and output.
        compute: how products are done; None is exactly the dtype. "bfloat16", for float32 layers,
            rounds the operands of every matrix product (x, h, weights, the gradients of gates) to 8
            significant bits; sums, states, parameters and gradients stay float32. Tokens count as
            one-hot rows. "tfloat32" and "float16" do likewise and need ``device="cuda"``.
        device: "cpu" for NumPy's arrays, "cuda" for CuPy's on its current device.
        seed: of the initial parameters, which are uniform in ±1/√H.
        recurrent_init: "uniform", or "orthogonal" for each gate's recurrent matrix.

    Attributes:
        params: name -> array, changed in place to learn (see `Parameters`). For layer k
            ``weight_ih_l{k}`` (G·H, I), ``weight_hh_l{k}`` (G·H, H), ``bias_l{k}`` (G·H) and, where
            the reset gate acts after the product, ``bias_hn_l{k}`` (H); the second direction's end
            in ``_reverse``. The constructor's arguments are attributes too; all are read-only.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range; the message names it.

    Layers hold no hidden state: one may be called from several threads at once.

    On "cuda" parameters and results are CuPy arrays; arguments may be any arrays of that GPU (CuPy,
    PyTorch, JAX) and are not copied. Work is queued on CuPy's current stream, and no call waits for
    it, so values are not looked at: a token out of range counts as the nearest that is in it.

    """

    gates: ClassVar[tuple[str, ...]]

    @explains_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
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
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_layers = positive_int("num_layers", num_layers)
        self.bidirectional = boolean("bidirectional", bidirectional)
        self.batch_first = boolean("batch_first", batch_first)
        self.bias = boolean("bias", bias)
        self.dropout = finite_float("dropout", dropout, minimum=0.0)
        if self.dropout >= 1.0:
            raise ValueError(f"dropout must be below 1, got {dropout!r}")
        if self.dropout > 0.0 and self.num_layers == 1:
            warn(f"dropout={dropout!r} does nothing with num_layers=1: it lies between layers")
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
            self._cell,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.num_directions,
            self.bias,
            self.dtype,
            self.compute,
        )
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
    def _cell(self) -> str:
        """The kernel's name of the cell."""
        raise NotImplementedError

    def _initial_values(self) -> Iterator[tuple[str, Array]]:
        """For each parameter in turn its name and values, in host memory."""
        return initial_values(self._spec, self.seed, self.recurrent_init)

    @cached_property
    def _network(self) -> Network:
        """What runs: the parameters' own arrays, by layer and direction."""
        layout = Layout(self._spec, self._device, self.batch_first, type(self).__name__)
        weights = [
            Weights.of(None if name is None else self._parameters[name].own for name in names)
            for names in parameter_names(self._spec)
        ]
        return Network.of(layout, weights)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal layer can be built."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
            "bias": self.bias,
            "dropout": self.dropout,
            "dtype": self.dtype.name,
            "compute": self.compute,
            "device": self.device,
            "seed": self.seed,
            "recurrent_init": self.recurrent_init,
        }

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: `_network` names arrays that a copy has anew."""
        return {name: value for name, value in vars(self).items() if name != "_network"}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config().items())
        return f"{type(self).__name__}({arguments})"

    def __call__(
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
    ) -> tuple[Array, State]:
        """Run without keeping anything for a backward pass; there is no dropout.

        Args:
            x: (T, B, I) of the layer's dtype, or integer tokens (T, B) in 0..I-1. Any strides; a
                last axis that is not contiguous is copied. T or B may be 0.
            state: the initial state, (L·D, B, H) or, for an LSTM, a pair of those; None, also as
                one of the pair, is zero.
            lengths: (B,) integers in 0..T, in host memory on every device. Past a row's length y
                is 0 and its state stays; the second direction starts at the row's own last step.
            out: where y goes; no two of its elements may share memory, nor may it share any with
                what the call reads: x, state and the parameters.

        Returns:
            y (T, B, D·H) and the last state, shaped as the initial one.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or range.

        """
        return run(self._network, x, state, lengths, out)

    def forward(
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
        dropout_key: SupportsIndex | None = None,
    ) -> tuple[Array, State, Tape]:
        """Run and keep what a backward pass needs; arguments and results as in a plain call.

        Args:
            dropout_key: an integer in 0..2**64-1 that picks the dropout masks, needed when dropout
                is not 0. The same key gives the same masks, so give every step of training its own.

        Returns:
            y, the last state and a tape. The tape has its own copy of the parameters, but x, y and
            the initial state are kept as they are: leave them unchanged until ``tape.backward``.

        """
        if dropout_key is not None:
            dropout_key = check_dropout_key(dropout_key, 64)
        elif self.dropout > 0.0 and self.num_layers > 1:
            raise ValueError(
                f"dropout_key must be given when dropout is {self.dropout:g}, got None"
            )
        network = self._network
        layout = network.layout
        given = layout.input(x, state, lengths)
        result = layout.output(out, given, () if out is None else network.named_weights())
        masks: list[Array] = []
        if self.dropout > 0.0 and self.num_layers > 1:
            assert dropout_key is not None
            masks = dropout_masks(network, given, self.dropout, dropout_key)
        h, c = given.h_0, given.c_0
        if state is not None:  # the kernels work in place, and these are the caller's
            h, c = h.copy(), None if c is None else c.copy()
        passes = forward(network, given, h, c, result, masks, keep=True)
        y = layout.as_given(result, given) if out is None else out
        return y, layout.state_as_given(h, c, given), Tape(network, given, passes, masks)

    def freeze(self) -> Frozen:
        """A packed snapshot of the parameters as they are now, to be called as the layer is.

        A call of the layer packs its weights anew, since they may have changed; those of a frozen
        layer are packed once. The fewer steps and rows a call has, the more that saves.
        """
        network = self._network
        return Frozen(network.snapshot(network.layout), repr(self))

    def stream(self, batch: int = 1, *, weights: str | None = None) -> Stream:
        """A stepper for sequences that arrive piece by piece.

        It holds a packed snapshot of the parameters as they are now, and the state of `batch` rows.

        Args:
            batch: rows, each a sequence of its own.
            weights: "bfloat16" rounds the snapshot's weight matrices to 8 significant bits, so that
                a step reads half the bytes; biases, state and sums stay float32. None keeps them,
                as a GPU must. A layer with compute="bfloat16" has them rounded in any case, and x
                and h with them.

        Raises:
            ValueError: the layer is bidirectional, so that its output needs the whole sequence;
                or bfloat16 is asked of a float64 layer.

        """
        return Stream(self._network, positive_int("batch", batch, minimum=0), weights)

    def plan(self, steps: int, batch: int, *, training: bool = False) -> dict[str, Any]:
        """How the first layer, or launch of layers, of a call of that size is computed, and why.

        Args:
            steps: T.
            batch: B.
            training: whether a backward pass follows; it matters on a GPU alone.

        Returns:
            On a CPU "isa" and "threads" in use, "row_groups" and "unit_groups", the grid that the
            threads form over the batch and the units, and "product", what multiplies. On a GPU
            "path", "groups" that share the batch, "blocks_per_group" and "units_per_block" that
            share the units, "layers_per_launch", those that run as a wavefront in one launch, from
            the first up, and the bytes "shared_bytes" and "workspace_bytes". "reason" in words.

        """
        return self._device.plan(
            self._spec,
            positive_int("steps", steps),
            positive_int("batch", batch),
            training=training,
        )


def stream_of_tokens(layer: Recurrent, batch: int) -> Stream:
    """A stream for tokens alone, during whose life nobody may write to the layer's parameters.

    It copies none of them, and of a large vocabulary it packs no more than the tokens that come.
    """
    return Stream(layer._network, batch, by_token=True)


def state_names(layer: Recurrent) -> tuple[str, ...]:
    """Of the parts of a layer's state: h, and c where the cell has one."""
    return layer._spec.facts.states

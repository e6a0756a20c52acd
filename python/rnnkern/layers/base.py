# SPDX-License-Identifier: Apache-2.0
"""What all recurrent layers share: parameters, checked arguments, the way of the data.

Shapes, with T steps, B rows of a batch, I inputs, H units, L layers and D directions: x (T, B, I),
y (T, B, D·H), every state (L·D, B, H). ``batch_first`` swaps the first two axes of x and y, and
an x without its batch axis gives results without theirs. Integer x (T, B) stands for one-hot rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar, SupportsIndex

import numpy as np

from rnnkern._checks import (
    Array,
    DType,
    boolean,
    choice,
    conversion,
    dtype_text,
    explains_options,
    finite_float,
    float_dtype,
    host_array,
    positive_int,
    warn,
)
from rnnkern.devices import Arguments, Kept, get_device
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.frozen import Frozen
from rnnkern.layers.parameters import Parameter, Parameters
from rnnkern.layers.stream import Stream
from rnnkern.layers.tape import Input, Pass, State, Tape, Weights, masked

# More parameters or stacked layers than these are a mistake, found before memory is asked for.
_MOST_PARAMETERS, _MOST_LAYERS = 2**40, 2**16


# One layer's in one direction, as the fields of ``Weights``.
_OfOneDirection = tuple[Parameter, Parameter, "Parameter | None", "Parameter | None"]


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
    _has_cell_state: ClassVar[bool] = False

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
        self._check_sizes()
        self._parameters = list(self._all_parameters())
        named = {p.name: p for p in filter(None, chain(*self._parameters))}
        self.params = Parameters(named, self._initial_values(named))
        self._settle()

    @property
    def num_directions(self) -> int:
        """D: 2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def _cell(self) -> str:
        """The kernel's name of the cell."""
        raise NotImplementedError

    @property
    def _has_bias_hn(self) -> bool:
        return False

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
        """For copies and pickles: `_weights` names arrays that a copy has anew."""
        return {name: value for name, value in vars(self).items() if name != "_weights"}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config().items())
        return f"{type(self).__name__}({arguments})"

    # -- parameters ---------------------------------------------------------------------------

    def _check_sizes(self) -> None:
        above = self.hidden_size * (self.num_directions + 1) * (self.num_layers - 1)
        columns = self.input_size + self.hidden_size + above
        if len(self.gates) * self.hidden_size * columns * self.num_directions > _MOST_PARAMETERS:
            raise ValueError(
                f"input_size, hidden_size and num_layers must give at most {_MOST_PARAMETERS} "
                f"parameters, got input_size={self.input_size}, hidden_size={self.hidden_size}, "
                f"num_layers={self.num_layers}"
            )
        if self.num_layers > _MOST_LAYERS:
            raise ValueError(f"num_layers must be at most {_MOST_LAYERS}, got {self.num_layers}")

    def _all_parameters(self) -> Iterator[_OfOneDirection]:
        """Of every layer and direction, in the order of the states: the fields of ``Weights``."""
        rows, units = len(self.gates) * self.hidden_size, self.hidden_size

        def made(kind: str, *shape: int) -> Parameter:
            return Parameter(f"{kind}_{suffix}", shape, self.dtype, self._device)

        for layer in range(self.num_layers):
            inputs = units * self.num_directions if layer else self.input_size
            for ending in ("", "_reverse")[: self.num_directions]:
                suffix = f"l{layer}{ending}"
                yield (
                    made("weight_ih", rows, inputs),
                    made("weight_hh", rows, units),
                    made("bias", rows) if self.bias else None,
                    made("bias_hn", units) if self.bias and self._has_bias_hn else None,
                )

    def _initial_values(self, parameters: Mapping[str, Parameter]) -> Iterator[Array]:
        """For each parameter in turn, in host memory."""
        random = np.random.default_rng(self.seed)
        bound = self.hidden_size**-0.5
        for name, parameter in parameters.items():
            if name.startswith("weight_hh") and self.recurrent_init == "orthogonal":
                yield self._orthogonal(random)
            else:
                yield random.uniform(-bound, bound, parameter.shape).astype(self.dtype)

    def _orthogonal(self, random: np.random.Generator) -> Array:
        """A random orthogonal matrix for each gate (Saxe et al. 2014, arXiv:1312.6120)."""
        blocks = []
        for _ in self.gates:
            q, r = np.linalg.qr(random.standard_normal((self.hidden_size, self.hidden_size)))
            blocks.append(q * np.sign(np.diag(r)))
        return np.concatenate(blocks).astype(self.dtype)

    @cached_property
    def _weights(self) -> list[Weights]:
        """The parameters' own arrays, by layer and direction."""
        return [
            Weights(
                w_ih.own,
                w_hh.own,
                None if bias is None else bias.own,
                None if bias_hn is None else bias_hn.own,
            )
            for w_ih, w_hh, bias, bias_hn in self._parameters
        ]

    # -- calls --------------------------------------------------------------------------------

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
        y, state, _ = self._run(x, state, lengths, out)
        return y, state

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
        y, state, tape = self._run(x, state, lengths, out, keep=True, dropout_key=dropout_key)
        assert tape is not None
        return y, state, tape

    def freeze(self) -> Frozen:
        """A packed snapshot of the parameters as they are now, to be called as the layer is.

        A call of the layer packs its weights anew, since they may have changed; those of a frozen
        layer are packed once. The fewer steps and rows a call has, the more that saves.
        """
        return Frozen(self)

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
        return Stream(self, positive_int("batch", batch, minimum=0), weights)

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
            self._cell,
            self.input_size,
            self.hidden_size,
            positive_int("steps", steps),
            positive_int("batch", batch),
            self.num_directions,
            self.num_layers,
            self.dtype,
            self.compute,
            training=training,
        )

    # -- the way of the data ------------------------------------------------------------------

    def _run(
        self,
        x: Any,
        state: State | None,
        lengths: Any,
        out: Array | None,
        *,
        keep: bool = False,
        dropout_key: int | None = None,
        weights: list[Weights] | None = None,
        panels: list[Any] | None = None,
    ) -> tuple[Array, State, Tape | None]:
        given = self._check_input(x, state, lengths)
        if weights is None:
            weights = self._weights
        result = self._output(out, given, weights)
        masks: list[Array] = []
        if keep and self.dropout > 0.0 and self.num_layers > 1:
            assert dropout_key is not None
            shape = (*given.x.shape[:2], self._features)
            masks = [self._dropout_mask(dropout_key, k, shape) for k in range(self.num_layers - 1)]
        h_n, c_n = given.h_0, given.c_0
        if keep or state is not None:  # the kernels work in place
            h_n, c_n = h_n.copy(), None if c_n is None else c_n.copy()
        passes = self._through_layers(
            given,
            h_n,
            c_n,
            result,
            weights,
            panels,
            masks=masks,
            keep=keep,
        )
        tape = Tape(self, given, passes, masks) if keep else None
        last_state = (h_n, c_n) if c_n is not None else h_n
        y = self._as_given(result, given) if out is None else out
        return y, self._state_as_given(last_state, given), tape

    def _through_layers(
        self,
        given: Input,
        h: Array,
        c: Array | None,
        result: Array,
        weights: list[Weights],
        panels: list[Any] | None = None,
        *,
        masks: Sequence[Array] = (),
        keep: bool = False,
    ) -> list[Pass]:
        """The input through all layers: h and c change in place, y goes to `result`.

        `weights` and their `panels`, from ``Device.pack``, are by layer and direction, as the
        passes that are given back if `keep`.
        """
        directions = self.num_directions
        passes: list[Pass] = []
        first, source = 0, given.x
        for count in self._layers_per_call(given, backward=False):
            calls: list[Arguments] = []
            outputs: list[Array] = []
            for layer in range(first, first + count):
                y = result
                if layer < self.num_layers - 1:
                    y = self._device.xp.empty((*given.x.shape[:2], self._features), self.dtype)
                outputs.append(y)
                for direction in range(directions):
                    index = layer * directions + direction
                    call = {
                        "x": source if layer == first else None,
                        "h": h[index],
                        "c": None if c is None else c[index],
                        **vars(weights[index]),
                        "reverse": direction == 1,
                        "y": self._direction(y, direction),
                    }
                    calls.append(call)
                if masks and layer < first + count - 1:
                    calls[-1]["mask"] = masks[layer]
            index = first * directions
            if given.is_empty:  # a tape then has no gate's value of any step
                saved = self._device.xp.empty((0, len(self.gates), self.hidden_size), self.dtype)
                kept: list[Kept] = [(saved, None, None)] * len(calls)
            else:
                kept = self._device.forward(
                    self._cell,
                    calls,
                    given.lengths,
                    self.compute,
                    keep=keep,
                    packed=None if panels is None else panels[index : index + len(calls)],
                    stacked=count > 1,
                )
            done = zip(calls, kept, strict=True)
            for layer, y in enumerate(outputs, first):
                for _ in range(directions) if keep else ():
                    call, (saved, cells, snapshot) = next(done)
                    index = len(passes)
                    c_0 = None if given.c_0 is None else given.c_0[index]
                    passes.append(
                        Pass(snapshot, source, given.h_0[index], c_0, call["y"], saved, cells)
                    )
                source = masked(y, masks[layer]) if layer < len(masks) else y
            first += count
        return passes

    def _snapshot(self, *, batch_first: bool) -> Recurrent:
        """A twin of this layer, with a copy of its parameters."""
        twin = deepcopy(self)
        vars(twin)["batch_first"] = batch_first
        return twin

    def _panels(self, weights: list[Weights], *, by_token: bool = False) -> list[Any]:
        """Parameters as the kernels of whole sequences want them, by layer and direction.

        With `by_token` x will be tokens.
        """
        pack, inputs = self._device.pack, self.num_directions if by_token else 0
        return [
            pack(self._cell, **vars(w), compute=self.compute, with_input=index >= inputs)
            for index, w in enumerate(weights)
        ]

    def _layers_per_call(self, given: Input, *, backward: bool) -> list[int]:
        """How many layers each call of the device's takes, from the first up."""
        # A layer takes both directions below.
        if self.num_layers == 1 or self.bidirectional or given.is_empty:
            return [1] * self.num_layers
        return self._device.layers_per_call(
            self._cell,
            self.hidden_size,
            given.steps,
            given.batch,
            self.num_layers,
            self.dtype,
            self.compute,
            backward=backward,
        )

    @property
    def _features(self) -> int:
        return self.num_directions * self.hidden_size

    def _direction(self, array: Array, direction: int) -> Array:
        """The part of a (T, B, D·H) array that belongs to a direction."""
        return array[..., direction * self.hidden_size : (direction + 1) * self.hidden_size]

    def _dropout_mask(self, key: int, layer: int, shape: tuple[int, ...]) -> Array:
        """0 or 1/(1-p) for each element; counter-based, so that threads have no part in it."""
        kept = self._device.random(key, layer, shape) >= np.float32(self.dropout)
        mask: Array = kept.astype(self.dtype) * self.dtype.type(1.0 / (1.0 - self.dropout))
        return mask

    def _check_input(self, x: Any, state: State | None, lengths: Any) -> Input:
        array = self._device.array("x", x)
        shape = array.shape
        tokens = array.dtype.kind in "iu"
        if not tokens and array.dtype != self.dtype:
            raise TypeError(
                f"x must be {self.dtype.name} as the layer, or integer tokens, "
                f"got {dtype_text(array.dtype)}: {conversion(self.dtype)}"
            )
        axes = 2 if tokens else 3
        if array.ndim not in (axes - 1, axes):
            order = "(B, T" if self.batch_first else "(T, B"
            wanted = f"{order}) or (T,)" if tokens else f"{order}, I) or (T, I)"
            note = f" of integers, which are tokens: {conversion(self.dtype)}" if tokens else ""
            raise ValueError(f"x must have shape {wanted}, got {array.shape}{note}")
        unbatched = array.ndim == axes - 1
        if unbatched:
            array = array[:, None]
        elif self.batch_first:
            array = array.swapaxes(0, 1)
        if not tokens and array.shape[2] != self.input_size:
            raise ValueError(
                f"x must have input_size = {self.input_size} features, got shape {shape}"
            )
        h_0, c_0 = self._check_state("state", state, int(array.shape[1]), unbatched)
        checked_lengths = None if lengths is None else _check_lengths(lengths, array.shape[:2])
        if not tokens:
            array = self._device.last_axis_contiguous(array)
        else:
            if array.dtype == np.uint64:
                array = self._within_int64(array, checked_lengths)
            array = self._device.walkable(array.astype(np.int64, copy=False))
        return Input(array, h_0, c_0, checked_lengths, unbatched)

    def _within_int64(self, tokens: Array, lengths: Array | None) -> Array:
        """uint64 tokens (T, B); those too large for int64, that may stand past a length, cut."""
        most = np.uint64(2**63 - 1)
        if self._device.values_are_free:
            live = True if lengths is None else np.arange(len(tokens))[:, None] < lengths
            wrong = (tokens > most) & live
            if wrong.any():
                raise ValueError(
                    f"x must hold tokens in 0..{self.input_size - 1}, got {tokens[wrong][0]}"
                )
        cut: Array = np.minimum(tokens, most)
        return cut

    def _check_state(
        self, name: str, state: State | None, batch: int, unbatched: bool
    ) -> tuple[Array, Array | None]:
        """H and c (None where the cell has none), both (L·D, B, H) and contiguous."""
        count = self.num_layers * self.num_directions
        full, device = (count, batch, self.hidden_size), self._device
        shape = (count, self.hidden_size) if unbatched else full
        if state is None:
            h, *c = (device.xp.zeros(full, self.dtype) for _ in range(1 + self._has_cell_state))
            return h, c[0] if c else None
        parts: tuple[Any, ...]
        if self._has_cell_state:
            if not isinstance(state, (tuple, list)):
                raise TypeError(f"{name} must be a pair (h, c) for an LSTM, got {type(state)!r}")
            if len(state) != 2:
                raise ValueError(
                    f"{name} must be a pair (h, c) for an LSTM, got {len(state)} parts"
                )
            parts = tuple(state)
        else:
            if isinstance(state, (tuple, list)):
                raise TypeError(f"{name} must be one array h, got {type(state)!r}")
            parts = (state,)
        arrays = [
            device.xp.zeros(full, self.dtype)
            if part is None
            else device.contiguous(
                device.shaped(f"{name}[{letter!r}]", part, shape, self.dtype).reshape(full)
            )
            for letter, part in zip("hc", parts, strict=False)
        ]
        return arrays[0], arrays[1] if self._has_cell_state else None

    def _output(self, out: Array | None, given: Input, weights: list[Weights]) -> Array:
        """The (T, B, D·H) array that y goes to: a view of `out`, or a new one.

        Memory that the call reads, or the tape after it, is refused.
        """
        steps, batch, features = given.steps, given.batch, self._features
        if given.unbatched:
            shape: tuple[int, ...] = (steps, features)
        else:
            shape = (batch, steps, features) if self.batch_first else (steps, batch, features)
        if out is None:
            out = self._device.xp.empty(shape, self.dtype)
            assert out is not None
        else:
            self._check_out(out, shape)
            names = [p and p.label for p in chain(*self._parameters)]
            arrays = chain(*(vars(w).values() for w in weights))
            read = [("x", given.x), ("state", given.h_0), ("state", given.c_0)]
            for name, array in chain(read, zip(names, arrays, strict=True)):
                if array is not None and self._device.overlap(out, array):
                    raise ValueError(
                        f"out must not share memory with {name}, got arrays that overlap"
                    )
        if given.unbatched:
            return out[:, None]
        return out.swapaxes(0, 1) if self.batch_first else out

    def _check_out(self, out: Array, shape: tuple[int, ...]) -> None:
        """Refuse an array that the kernels cannot write as it stands."""
        device = self._device
        if not isinstance(out, device.xp.ndarray):
            raise TypeError(f"out must be a {device.library} array, got {type(out)!r}")
        device.shaped("out", out, shape, self.dtype)
        if not device.writeable(out):
            raise ValueError("out must be writable, got a read-only array")
        if not device.aligned(out):
            raise ValueError("out must be aligned, got an array whose elements are not")
        if out.strides[-1] != out.itemsize and shape[-1] > 1 and out.size:
            raise ValueError(f"out must have a contiguous last axis, got strides {out.strides}")
        if not out.flags.c_contiguous and not device.region(out).has_own_elements():
            raise ValueError(
                f"out must not have two elements in the same memory, got strides {out.strides}"
            )

    def _as_given(self, array: Array, given: Input) -> Array:
        """A (T, B, ·) array in the caller's order of axes."""
        if given.unbatched:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    @staticmethod
    def _state_as_given(state: State, given: Input) -> State:
        if not given.unbatched:
            return state
        if isinstance(state, tuple):
            return state[0][:, 0], state[1][:, 0]
        return state[:, 0]


def _check_lengths(lengths: Any, shape: tuple[int, ...]) -> Array:
    steps, batch = shape
    array = host_array("lengths", lengths)
    if array.dtype.kind not in "iu" and array.size:  # an empty list is of floats
        raise TypeError(f"lengths must be an integer array, got {array.dtype.name}")
    if array.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), got {array.shape}")
    if array.size and (array.min() < 0 or array.max() > steps):
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"lengths must lie in 0..{steps}, got {wrong}")
    return array.astype(np.int64)


def check_dropout_key(key: SupportsIndex, bits: int) -> int:
    """The key of dropout masks as an integer of so many bits."""
    result = positive_int("dropout_key", key, minimum=0)
    if result >= 2**bits:
        raise ValueError(f"dropout_key must be below 2**{bits}, got {result}")
    return result

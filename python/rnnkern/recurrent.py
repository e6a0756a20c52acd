"""What all recurrent layers share: parameters, checked arguments, the way of the data.

Shapes, with T steps, B rows of a batch, I inputs, H units, L layers and D directions: x (T, B, I),
y (T, B, D·H), every state (L·D, B, H). ``batch_first`` swaps the first two axes of x and y, and
an x without its batch axis gives results without theirs. Integer x (T, B) stands for one-hot rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from rnnkern._checks import (
    Array,
    boolean,
    choice,
    dtype_text,
    finite_float,
    host_array,
    positive_int,
)
from rnnkern.device import Arguments, get_device
from rnnkern.frozen import Frozen
from rnnkern.stream import Stream
from rnnkern.tape import Input, Pass, State, Tape, Weights

# More parameters than this in one layer are a mistake, found before memory is asked for.
_MOST_PARAMETERS = 2**40


@dataclass(frozen=True)
class _Parameter:
    name: str
    shape: tuple[int, ...]

    @cached_property
    def label(self) -> str:
        """As errors call it."""
        return f"params[{self.name!r}]"


# One layer's in one direction, as the fields of ``Weights``.
_Parameters = tuple[_Parameter, _Parameter, "_Parameter | None", "_Parameter | None"]


class Recurrent:
    """What all recurrent layers share. Use one of the subclasses.

    Args:
        input_size: I, features of x, or the number of tokens when x is integer.
        hidden_size: H, units of each layer and direction.
        num_layers: layers stacked on one another.
        bidirectional: also run from the last step to the first; y holds both directions' states.
        batch_first: x and y are (B, T, ·).
        bias: whether there are bias parameters.
        dropout: share of each layer's output, but the last one's, that ``forward`` sets to zero.
        dtype: "float32" or "float64", of parameters, input and output.
        compute: how products are done; None is exactly the dtype. "bfloat16", for float32 layers,
            rounds the operands of every matrix product (x, h, weights, the gradients of gates) to 8
            significant bits; sums, states, parameters and gradients stay float32. Tokens count as
            one-hot rows. "tfloat32" and "float16" do likewise and need ``device="cuda"``.
        device: "cpu" for NumPy's arrays, "cuda" for CuPy's on its current device.
        seed: of the initial parameters, which are uniform in ±1/√H.
        recurrent_init: "uniform", or "orthogonal" for each gate's recurrent matrix.

    Attributes:
        params: name -> array, changed in place to learn. For layer k ``weight_ih_l{k}`` (G·H, I),
            ``weight_hh_l{k}`` (G·H, H), ``bias_l{k}`` (G·H) and, where the reset gate acts after
            the product, ``bias_hn_l{k}`` (H); the second direction's end in ``_reverse``.

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
        dtype: str = "float32",
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
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        self.dtype = np.dtype(choice("dtype", name, ("float32", "float64")))
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
        self._parameters = list(self._parameter_names())
        self.params: dict[str, Array] = self._initial_parameters()

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

    def _parameter_names(self) -> Iterator[_Parameters]:
        """Of every layer and direction, in the order of the states: the fields of ``Weights``."""
        rows, units = len(self.gates) * self.hidden_size, self.hidden_size
        for layer in range(self.num_layers):
            inputs = units * self.num_directions if layer else self.input_size
            for ending in ("", "_reverse")[: self.num_directions]:
                suffix = f"l{layer}{ending}"
                bias_hn = self.bias and self._has_bias_hn
                yield (
                    _Parameter(f"weight_ih_{suffix}", (rows, inputs)),
                    _Parameter(f"weight_hh_{suffix}", (rows, units)),
                    _Parameter(f"bias_{suffix}", (rows,)) if self.bias else None,
                    _Parameter(f"bias_hn_{suffix}", (units,)) if bias_hn else None,
                )

    def _initial_parameters(self) -> dict[str, Array]:
        random = np.random.default_rng(self.seed)
        bound = self.hidden_size**-0.5
        params: dict[str, Array] = {}
        for parameter in filter(None, chain(*self._parameters)):
            if parameter.name.startswith("weight_hh") and self.recurrent_init == "orthogonal":
                params[parameter.name] = self._orthogonal(random)
            else:
                numbers = random.uniform(-bound, bound, parameter.shape)
                params[parameter.name] = self._device.put(numbers.astype(self.dtype))
        return params

    def _orthogonal(self, random: np.random.Generator) -> Array:
        """A random orthogonal matrix for each gate (Saxe et al. 2014, arXiv:1312.6120)."""
        blocks = []
        for _ in self.gates:
            q, r = np.linalg.qr(random.standard_normal((self.hidden_size, self.hidden_size)))
            blocks.append(q * np.sign(np.diag(r)))
        return self._device.put(np.concatenate(blocks).astype(self.dtype))

    def _weights(self) -> list[Weights]:
        """The parameters by layer and direction, checked: they are the caller's to change."""
        checked = self._checked_parameter
        return [
            Weights(
                checked(w_ih),
                checked(w_hh),
                None if bias is None else checked(bias),
                None if bias_hn is None else checked(bias_hn),
            )
            for w_ih, w_hh, bias, bias_hn in self._parameters
        ]

    def _checked_parameter(self, parameter: _Parameter) -> Array:
        value = self.params.get(parameter.name)
        if value is None:
            raise ValueError(f"params must hold {parameter.name!r}, got {sorted(self.params)}")
        device = self._device
        array = device.shaped(parameter.label, value, parameter.shape, self.dtype)
        return device.contiguous(array)

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
                last axis that is not contiguous is copied.
            state: the initial state, (L·D, B, H) or, for an LSTM, a pair of those; None is zero.
            lengths: (B,) integers in 0..T, in host memory on every device. Past a row's length y
                is 0 and its state stays; the second direction starts at the row's own last step.
            out: where y goes; it must not share memory with x.

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
        dropout_key: int | None = None,
    ) -> tuple[Array, State, Tape]:
        """Run and keep what a backward pass needs; arguments and results as in a plain call.

        Args:
            dropout_key: a non-negative integer that picks the dropout masks, needed when dropout is
                not 0. The same key gives the same masks, so give every step of training its own.

        Returns:
            y, the last state and a tape. The tape has its own copy of the parameters, but x, y and
            the initial state are kept as they are: leave them unchanged until ``tape.backward``.

        """
        if self.dropout > 0.0 and self.num_layers > 1:
            if dropout_key is None:
                raise ValueError(
                    f"dropout_key must be given when dropout is {self.dropout:g}, got None"
                )
            dropout_key = positive_int("dropout_key", dropout_key, minimum=0)
            if dropout_key >= 2**64:
                raise ValueError(f"dropout_key must be below 2**64, got {dropout_key}")
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
        return Stream(self, positive_int("batch", batch), weights)

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
        result = self._output(out, given)
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
            self._weights() if weights is None else weights,
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
                source = y * masks[layer] if layer < len(masks) else y
            first += count
        return passes

    def _snapshot(self) -> Recurrent:
        """A twin of this layer, with a copy of its parameters."""
        twin = copy(self)
        twin.params = {name: array.copy() for name, array in self.params.items()}
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
        if self.num_layers == 1 or self.bidirectional:  # a layer takes both directions below
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
                f"got {dtype_text(array.dtype)}"
            )
        axes = 2 if tokens else 3
        if array.ndim not in (axes - 1, axes):
            order = "(B, T" if self.batch_first else "(T, B"
            wanted = f"{order}) or (T,)" if tokens else f"{order}, I) or (T, I)"
            raise ValueError(f"x must have shape {wanted}, got {array.shape}")
        unbatched = array.ndim == axes - 1
        if unbatched:
            array = array[:, None]
        elif self.batch_first:
            array = array.swapaxes(0, 1)
        if 0 in array.shape[:2]:
            raise ValueError(
                f"x must have at least one step and one row, got shape {shape} "
                f"(T = {array.shape[0]}, B = {array.shape[1]})"
            )
        if tokens:
            wide = array.dtype == np.uint64 and self._device.values_are_free
            if wide and array.max() >= self.input_size:
                raise ValueError(
                    f"x must hold tokens in 0..{self.input_size - 1}, got {array.max()}"
                )
            array = array.astype(np.int64, copy=False)
        elif array.shape[2] != self.input_size:
            raise ValueError(
                f"x must have input_size = {self.input_size} features, got shape {shape}"
            )
        if not tokens:
            array = self._device.last_axis_contiguous(array)
        h_0, c_0 = self._check_state("state", state, int(array.shape[1]), unbatched)
        checked_lengths = None if lengths is None else _check_lengths(lengths, array.shape[:2])
        return Input(array, h_0, c_0, checked_lengths, unbatched)

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
            device.contiguous(
                device.shaped(f"{name}[{letter!r}]", part, shape, self.dtype).reshape(full)
            )
            for letter, part in zip("hc", parts, strict=False)
        ]
        return arrays[0], arrays[1] if self._has_cell_state else None

    def _output(self, out: Array | None, given: Input) -> Array:
        """The (T, B, D·H) array that y goes to: a view of `out`, or a new one."""
        steps, batch, features, device = given.steps, given.batch, self._features, self._device
        if given.unbatched:
            shape: tuple[int, ...] = (steps, features)
        else:
            shape = (batch, steps, features) if self.batch_first else (steps, batch, features)
        if out is None:
            out = device.xp.empty(shape, self.dtype)
            assert out is not None
        else:
            if not isinstance(out, device.xp.ndarray):
                raise TypeError(f"out must be a {device.library} array, got {type(out)!r}")
            device.shaped("out", out, shape, self.dtype)
            if not device.writeable(out):
                raise ValueError("out must be writable, got a read-only array")
            if not device.aligned(out):
                raise ValueError("out must be aligned, got an array whose elements are not")
            if out.strides[-1] != out.itemsize and features > 1:
                raise ValueError(f"out must have a contiguous last axis, got strides {out.strides}")
            if device.xp.may_share_memory(out, given.x):
                raise ValueError("out must not share memory with x, got arrays that overlap")
        if given.unbatched:
            return out[:, None]
        return out.swapaxes(0, 1) if self.batch_first else out

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
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"lengths must be an integer array, got {array.dtype.name}")
    if array.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), got {array.shape}")
    if array.min() < 0 or array.max() > steps:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"lengths must lie in 0..{steps}, got {wrong}")
    return array.astype(np.int64)

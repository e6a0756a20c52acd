# SPDX-License-Identifier: Apache-2.0
"""The arguments of a call: checked, and laid out as the kernels want them: time first, batched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, Union

import numpy as np

from rnnkern._checks import Array, conversion, dtype_text, host_array, positive_int
from rnnkern.devices import Device, LayerSpec
from rnnkern.layers.marks import Anew, Asked, Marks, checked, live_of

State = Union[Array, "tuple[Array, Array]"]
StackState: TypeAlias = "Sequence[State | None]"  # one for each layer, from the first up


class Input(NamedTuple):
    """A call's checked arguments, time first and batched."""

    x: Array
    lengths: Array | None
    unbatched: bool
    marks: Marks | None = None

    @property
    def steps(self) -> int:
        """T."""
        return int(self.x.shape[0])

    @property
    def batch(self) -> int:
        """B."""
        return int(self.x.shape[1])

    @property
    def by_token(self) -> bool:
        """Whether x is tokens."""
        return self.x.ndim == 2

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return 0 in self.x.shape


class Layout(NamedTuple):
    """How callers lay out the arrays of a network, and what its errors call it.

    Attributes:
        spec: of the network.
        device: where its arrays are.
        batch_first: whether x and y are (B, T, ·).
        owner: the class that a caller sees.

    """

    spec: LayerSpec
    device: Device
    batch_first: bool
    owner: str

    # -- in -----------------------------------------------------------------------------------

    def input(
        self, x: Any, state: State | None, lengths: Any, asked: Asked | None = None
    ) -> tuple[Input, Array, Array | None]:
        """What a call is given, and its initial states as ``state`` gives them."""
        device, spec = self.device, self.spec
        array = device.array("x", x)
        shape = array.shape
        tokens = array.dtype != spec.dtype
        if tokens and array.dtype.kind not in "iu":
            raise TypeError(
                f"x must be {spec.dtype.name} as the layer, or integer tokens, "
                f"got {dtype_text(array.dtype)}: {conversion(spec.dtype, array.dtype)}"
            )
        axes = 2 if tokens else 3
        if len(shape) not in (axes - 1, axes):
            order = "(B, T" if self.batch_first else "(T, B"
            wanted = f"{order}) or (T,)" if tokens else f"{order}, I) or (T, I)"
            note = f" of integers, which are tokens: {conversion(spec.dtype)}" if tokens else ""
            raise ValueError(f"x must have shape {wanted}, got {shape}{note}")
        unbatched = len(shape) == axes - 1
        if unbatched:
            array = array[:, None]
        elif self.batch_first:
            array = array.swapaxes(0, 1)
        if not tokens and shape[-1] != spec.inputs:
            raise ValueError(f"x must have input_size = {spec.inputs} features, got shape {shape}")
        try:
            h_0, c_0 = self.state("state", state, array.shape[1], unbatched=unbatched)
        except ValueError as error:
            if not tokens or unbatched or shape[-1] != spec.inputs:
                raise
            raise ValueError(  # perhaps features (T, I) were meant
                f"{error}: x of integers {shape} is a batch of tokens, whose state is a batch's; "
                f"if it is features, {conversion(spec.dtype)}"
            ) from None
        checked_lengths = None if lengths is None else _check_lengths(lengths, array.shape[:2])
        marks = None
        if asked is not None:
            steps, batch = array.shape[:2]
            swapped = self.batch_first
            marks = checked(
                asked, steps, batch, checked_lengths, swapped=swapped, unbatched=unbatched
            )
            check_repeats(asked, spec)
            if not isinstance(asked.reset_to, str):
                anew = self._anew(asked.reset_to, batch, unbatched=unbatched)
                marks = marks._replace(anew=anew)
            elif asked.reset_to == "initial":
                marks = marks._replace(anew=Anew(h_0, c_0, is_initial=True))
        if not tokens:
            array = device.last_axis_contiguous(array)
        else:
            if array.dtype == np.uint64:
                array = self._within_int64(array, checked_lengths, marks)
            array = device.walkable(array.astype(np.int64, copy=False))
        return Input(array, checked_lengths, unbatched, marks), h_0, c_0

    def taken(self, x: Array, lengths: Array | None) -> Input:
        """Of arguments that the kernels have taken as they stood."""
        axes = 3 if x.dtype == self.spec.dtype else 2
        unbatched = x.ndim < axes
        if unbatched:
            x = x[:, None]
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        return Input(x, None if lengths is None else lengths.copy(), unbatched)

    def _within_int64(self, tokens: Array, lengths: Array | None, marks: Marks | None) -> Array:
        """uint64 tokens (T, B); those too large for int64, that may be no live step's, cut."""
        most = np.uint64(2**63 - 1)
        if self.device.values_are_free:
            mask = None if marks is None else marks.mask
            wrong = (tokens > most) & live_of(tokens.shape[0], tokens.shape[1], lengths, mask)
            if wrong.any():
                raise ValueError(
                    f"x must hold tokens in 0..{self.spec.inputs - 1}, got {tokens[wrong][0]}"
                )
        cut: Array = np.minimum(tokens, most)
        return cut

    def state(
        self, name: str, state: State | None, batch: int, *, unbatched: bool
    ) -> tuple[Array, Array | None]:
        """H (L·D, B, P) and c (L·D, B, H), or None where the cell has none, both contiguous.

        New ones for None, else perhaps the caller's own.
        """
        spec, device, zeros = self.spec, self.device, self.device.xp.zeros
        has_c = len(spec.widths) > 1
        full = [(spec.states, batch, width) for width in spec.widths]
        if state is None:
            fresh = [zeros(shape, spec.dtype) for shape in full]
            return fresh[0], fresh[1] if has_c else None
        parts: tuple[Any, ...]
        if has_c:
            wanted = f"{name} must be the pair (h, c) of this {self.owner}"
            if not isinstance(state, (tuple, list)):
                raise TypeError(f"{wanted}, got {type(state)!r}")
            if len(state) != 2:
                raise ValueError(f"{wanted}, got {len(state)} parts")
            parts = tuple(state)
        else:
            if isinstance(state, (tuple, list)):
                raise TypeError(f"{name} must be one array h, got {type(state)!r}")
            parts = (state,)
        arrays = [
            zeros(shape, spec.dtype)
            if part is None
            else device.contiguous(
                device.shaped(
                    f"{name}[{letter!r}]",
                    part,
                    (shape[0], shape[2]) if unbatched else shape,
                    spec.dtype,
                ).reshape(shape)
            )
            for letter, part, shape in zip("hc", parts, full, strict=False)
        ]
        return arrays[0], arrays[1] if has_c else None

    def _anew(self, state: State, batch: int, *, unbatched: bool) -> Anew:
        """A state of every row, or of one row for all of them."""
        parts = state if isinstance(state, (tuple, list)) else (state,)
        shapes = [self.device.array("reset_to", part).shape for part in parts if part is not None]
        if unbatched or batch == 1 or not shapes or any(shape[1:2] != (1,) for shape in shapes):
            return Anew(*self.state("reset_to", state, batch, unbatched=unbatched))
        h, c = self.state("reset_to", state, 1, unbatched=False)
        repeat = self.device.xp.repeat
        return Anew(
            repeat(h, batch, axis=1),
            None if c is None else repeat(c, batch, axis=1),
            is_shared=True,
        )

    def own_state(
        self, name: str, state: State | None, batch: int, *, unbatched: bool
    ) -> tuple[Array, Array | None]:
        """As ``state``, to be written to."""
        h, c = self.state(name, state, batch, unbatched=unbatched)
        if state is None:
            return h, c
        return h.copy(), None if c is None else c.copy()

    def gradient(self, dy: Any, given: Input) -> Array | None:
        """∂L/∂y, time first and batched."""
        if dy is None:
            return None
        array = self.device.shaped("dy", dy, self._shape(given), self.spec.dtype)
        return self.device.last_axis_contiguous(self.time_first(array, given))

    # -- out ----------------------------------------------------------------------------------

    def output(
        self,
        out: Array | None,
        given: Input,
        h_0: Array,
        c_0: Array | None,
        read: Iterable[tuple[str, Array | None]],
    ) -> Array:
        """The (T, B, D·H) array that y goes to: a view of `out`, or a new one.

        Memory that the call reads, or the tape after it, is refused: the other arguments'.
        """
        shape = self._shape(given)
        if out is None:
            fresh: Array = self.device.xp.empty(shape, self.spec.dtype)
            return self.time_first(fresh, given)
        check_out(self.device, out, shape, self.spec.dtype)
        check_apart(self.device, out, (("x", given.x), ("state", h_0), ("state", c_0), *read))
        return self.time_first(out, given)

    def as_given(self, array: Array, given: Input) -> Array:
        """A (T, B, ·) array in the caller's order of axes."""
        if given.unbatched:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def state_as_given(self, h: Array, c: Array | None, given: Input) -> State:
        """The states in the caller's axes."""
        if given.unbatched:
            h, c = h[:, 0], None if c is None else c[:, 0]
        return h if c is None else (h, c)

    def _shape(self, given: Input) -> tuple[int, ...]:
        """Of y and dy, as the caller has it."""
        steps, batch, *_ = given.x.shape
        if given.unbatched:
            return steps, self.spec.features
        order = (batch, steps) if self.batch_first else (steps, batch)
        return *order, self.spec.features

    def time_first(self, array: Array, given: Input) -> Array:
        """A view of the caller's array with the kernels' axes."""
        if given.unbatched:
            return array[:, None]
        return array.swapaxes(0, 1) if self.batch_first else array


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


def check_out(device: Device, out: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array that the kernels cannot write as it stands."""
    if not isinstance(out, device.xp.ndarray):
        raise TypeError(f"out must be a {device.library} array, got {type(out)!r}")
    device.shaped("out", out, shape, dtype)
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


def check_apart(device: Device, out: Array, read: Iterable[tuple[str, Array | None]]) -> None:
    """Refuse an `out` that shares memory with one of the arrays, by their names, that are read."""
    for name, array in read:
        if array is not None and device.overlap(out, array):
            raise ValueError(f"out must not share memory with {name}, got arrays that overlap")


def check_repeats(asked: Asked | None, spec: LayerSpec) -> None:
    """Refuse last outputs of two directions in one."""
    if asked is not None and asked.repeats and spec.merges:
        raise ValueError(
            f"masked_output='last' needs a layer with merge='concat', got {spec.merge!r}: the last "
            "outputs of two directions stand at different steps"
        )


def check_dropout_key(key: SupportsIndex, bits: int) -> int:
    """The key of dropout masks as an integer of so many bits."""
    result = positive_int("dropout_key", key, minimum=0)
    if result >= 2**bits:
        raise ValueError(f"dropout_key must be below 2**{bits}, got {result}")
    return result


def split_key(key: int | None, count: int) -> list[int | None]:
    """So many keys of dropout masks that follow from one: parts must not drop the same units."""
    if key is None:
        return [None] * count
    return [int(k) for k in np.random.SeedSequence(key).generate_state(count, np.uint64)]


def states_of(name: str, state: Any, count: int) -> list[State | None]:
    """The states of so many layers, None for those that are not given."""
    if state is None:
        return [None] * count
    wanted = f"{name} must be a list or tuple with the state of each of the {count} layers"
    if not isinstance(state, (list, tuple)):
        raise TypeError(f"{wanted}, got {type(state)!r}")
    if len(state) != count:
        raise ValueError(f"{wanted}, got {len(state)} parts")
    return list(state)

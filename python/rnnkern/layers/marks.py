# SPDX-License-Identifier: Apache-2.0
"""What a call says of the steps of its rows: where a row begins anew, and which steps it skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnkern._checks import Array, choice, host_array
from rnnkern.devices import Device

if TYPE_CHECKING:
    from numpy.typing import NDArray

ZERO = "zero"  # the defaults, which small calls know by their identity; `asked` knows all others
RESET_TO = (ZERO, "initial")  # or a state
MASKED_OUTPUT = (ZERO, "last")


class Asked(NamedTuple):
    """The arguments of a call, unchecked but for the choices."""

    resets: Any
    segments: Any
    mask: Any
    reset_to: Any
    repeats: bool


class Anew(NamedTuple):
    """What rows begin anew with.

    Attributes:
        h: (L·D, B, P).
        c: (L·D, B, H), or None where the cell has none.
        is_initial: whether it is the initial state.
        is_shared: whether the caller gave one row for all.

    """

    h: Array
    c: Array | None
    is_initial: bool = False
    is_shared: bool = False


class Marks(NamedTuple):
    """The same, time first and batched, in host memory.

    Attributes:
        resets: (T, B) bool or None: before that step the row's state begins anew.
        mask: (T, B) bool or None: where it is False the row skips the step.
        anew: what rows begin anew with; None is zero.
        repeats: whether y of a step that is skipped is the row's last one, not 0.

    """

    resets: NDArray[np.bool_] | None
    mask: NDArray[np.bool_] | None
    anew: Anew | None = None
    repeats: bool = False

    def part(self, steps: slice) -> Marks:
        """Those of some steps."""
        resets, mask = self.resets, self.mask
        return self._replace(
            resets=None if resets is None else resets[steps],
            mask=None if mask is None else mask[steps],
        )


NO_MARKS = Marks(None, None)


def asked(resets: Any, reset_to: Any, segments: Any, mask: Any, masked_output: str) -> Asked | None:
    """What a call is asked for, or None where that is nothing but the plain thing."""
    named = reset_to is None or isinstance(reset_to, str)
    if named and reset_to != "zero":
        choice("reset_to", reset_to, RESET_TO)
    if masked_output != "zero":
        choice("masked_output", masked_output, MASKED_OUTPUT)
    if named and resets is None and segments is None and mask is None:
        return None
    return Asked(resets, segments, mask, reset_to, masked_output == "last")


def checked(
    given: Asked, steps: int, batch: int, lengths: Array | None, *, swapped: bool, unbatched: bool
) -> Marks:
    """The arguments as kernels take them; `swapped` says that callers have (B, T)."""
    shape = (steps,) if unbatched else (batch, steps) if swapped else (steps, batch)

    def time_first(array: NDArray[Any] | None) -> NDArray[Any] | None:
        if array is None:
            return None
        array = array.reshape(steps, 1) if unbatched else array.T if swapped else array
        own: NDArray[Any] = array.copy()  # which later changes do not reach
        return own

    resets = time_first(bool_marks("resets", given.resets, shape))
    mask = time_first(bool_marks("mask", given.mask, shape))
    wanted = "integers, one for each step"
    ids = time_first(_marks("segments", given.segments, shape, "iu", wanted))
    if ids is not None:
        live = live_of(steps, batch, lengths, mask)
        if (ids[live] < 0).any():
            raise ValueError(
                f"segments must be 0 or above, got {ids[live].min()}: steps that belong to none "
                "are told by mask, as mask=segments >= 0"
            )
        begins = _begins(ids, live)
        resets = begins if resets is None else resets | begins
    return Marks(resets, mask, repeats=given.repeats)


def bool_marks(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """A bool for every step, checked, as the caller has it; None stays None."""
    return _marks(name, value, shape, "b", "bool", f": {name} != 0 is an array of bools")


def _marks(
    name: str, value: Any, shape: tuple[int, ...], kinds: str, wanted: str, remedy: str = ""
) -> NDArray[Any] | None:
    if value is None:
        return None
    array = host_array(name, value)
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name} must be {wanted}, got {array.dtype.name}{remedy}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def live_of(
    steps: int, batch: int, lengths: Array | None, mask: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """(T, B): the steps that rows neither skip nor have past their ends."""
    live: NDArray[np.bool_] = np.ones((steps, batch), np.bool_) if mask is None else mask
    if lengths is not None:
        live = live & (np.arange(steps)[:, None] < lengths)
    return live


def _before(live: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(T, B): of each step the live one at it or before it, or -1."""
    steps: NDArray[np.int64] = np.where(live, np.arange(len(live))[:, None], -1)
    if len(live):
        np.maximum.accumulate(steps, axis=0, out=steps)
    return steps


def _begins(ids: NDArray[Any], live: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(T, B): live steps whose id is not that of the live step before."""
    begins = np.zeros(ids.shape, np.bool_)
    before = _before(live)[:-1]
    last = np.take_along_axis(ids, np.maximum(before, 0), axis=0)
    begins[1:] = live[1:] & (before >= 0) & (ids[1:] != last)
    return begins


class Repeated:
    """Y at the steps that rows skip, as their last output: that of the step gone through before.

    Args:
        device: where y is.
        mask: (T, B), host: where it is False the row skips the step.
        lengths: (B,) or None: past them y stays 0.
        backwards: of each direction, whether it runs from the last step to the first.

    """

    def __init__(
        self,
        device: Device,
        mask: NDArray[np.bool_],
        lengths: Array | None,
        backwards: Sequence[bool],
    ) -> None:
        steps, batch = mask.shape
        live = live_of(steps, batch, lengths, mask)
        self._device, self._backwards = device, tuple(backwards)
        self._holes = live_of(steps, batch, lengths, None) & ~live
        after = steps - 1 - _before(live[::-1])[::-1]
        of_back = np.where(after < steps, after, -1)
        self._sources = [of_back if back else _before(live) for back in self._backwards]

    def fill(self, y: Array) -> None:
        """Write them into y (T, B, D·H), in place."""
        put, units = self._device.put, y.shape[-1] // len(self._backwards)
        for d, source in enumerate(self._sources):
            t, b = np.nonzero(self._holes & (source >= 0))
            own = y[..., d * units : (d + 1) * units]
            own[put(t), put(b)] = own[put(source[t, b]), put(b)]

    def backward(self, dy: Array) -> Array:
        """∂L/∂y of the steps gone through, of the gradient in all of them."""
        total: Array = dy.copy()
        put, batch = self._device.put, dy.shape[1]
        units = dy.shape[2] // len(self._backwards)
        for d, source in enumerate(self._sources):
            t, b = np.nonzero(self._holes & (source >= 0))
            places, token = np.unique(source[t, b] * batch + b, return_inverse=True)
            if places.size:
                own = total[..., d * units : (d + 1) * units]
                rows = own[put(t), put(b)]
                sums = self._device.sums_by_token(put(token), rows, len(places))
                own[put(places // batch), put(places % batch)] += sums
        return total

# SPDX-License-Identifier: Apache-2.0
"""Where wrong numbers stand: what a failure on a machine that is gone tomorrow has to tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from support.compare import relative_error
from support.reference import Array

# An element is wrong when it is off by so many times the error that is allowed on average.
_OFF = 10.0


def axes_of(name: str, shape: tuple[int, ...], units: int) -> tuple[tuple[str, ...], Any]:
    """What an array's axes are, by its name, and the shape with an axis for the gates."""
    name = name.removeprefix("d")
    if name.startswith(("weight", "bias")) and shape[0] != units:
        axes = ("gate", "unit", "column")[: len(shape) + 1]
        return axes, (shape[0] // units, units, *shape[1:])
    if name.startswith(("weight", "bias")):
        return ("unit", "column")[: len(shape)], shape
    last = "input" if name.startswith("x") else "unit"
    return ("step", "row", last)[-len(shape) :], shape


def describe(
    name: str, got: Array, want: Array, tolerance: float, units: int, *, from_the_end: bool
) -> str | None:
    """What is wrong with an array and where it begins, or None where it is right.

    `from_the_end`: the steps were computed from the last to the first.
    """
    error = relative_error(got, want)
    if error <= tolerance:
        return None
    axes, shape = axes_of(name, got.shape, units)
    got, want = got.reshape(shape), want.reshape(shape)
    size = float(np.sqrt(np.mean(np.square(want.astype(np.float64))))) if want.size else 0.0
    off = np.abs(got.astype(np.float64) - want)
    wrong = ~(off <= _OFF * tolerance * (size or 1.0))
    text = f"{name}: relative error {error:.3g}, expected <= {tolerance:g}; "
    if not wrong.any():
        where = np.unravel_index(int(np.argmax(off)), shape)
        return text + f"spread out, the most at {_place(axes, where, got, want)}"
    places = np.argwhere(wrong)
    if axes[0] == "step" and from_the_end:
        places = places[np.argsort(-places[:, 0], kind="stable")]
    spread = ", ".join(
        f"{axis}s {_ranges(places[:, k])} of {shape[k]}" for k, axis in enumerate(axes)
    )
    unset = int(np.isnan(got.astype(np.float64)).sum())
    return (
        f"{text}{len(places)} of {wrong.size} numbers are wrong ({unset} are NaN), first "
        f"{_place(axes, tuple(places[0]), got, want)}; they are in {spread}"
    )


def _place(axes: Iterable[str], where: tuple[Any, ...], got: Array, want: Array) -> str:
    names = ", ".join(f"{axis} {int(i)}" for axis, i in zip(axes, where, strict=True))
    return f"{names}: {got[where]:.6g} in place of {want[where]:.6g}"


def _ranges(numbers: Array) -> str:
    """Sorted whole numbers in words: 0-3, 7 and so on."""
    found = np.unique(numbers)
    parts = [
        f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}"
        for part in np.split(found, np.flatnonzero(np.diff(found) > 1) + 1)
    ]
    return " ".join(parts[:4]) + (" and more" if len(parts) > 4 else "")


def _order(name: str) -> int:
    """Forward before backward, and there what the steps hand on before what is summed over them."""
    if name[0] != "d" and not name.startswith(("weight", "bias")):
        return 0
    return 1 if name.startswith(("dh", "dc")) else 2 if name.startswith("dx") else 3


def is_backward(name: str) -> bool:
    """Whether an array comes of the backward pass."""
    return _order(name) > 0


def assert_right(
    title: str,
    got: Mapping[str, Array],
    want: Mapping[str, Array],
    tolerance: float,
    units: int,
    plan: Mapping[str, Any],
    reverse: Mapping[str, bool] | None = None,
) -> None:
    """All arrays are within the norm-wise tolerance of those wanted.

    The failure tells, beside the title, of the first wrong array in the order of computing: the
    pass, the first wrong step, row and unit, and the plan that was used; then it names the others.

    Args:
        title: The cell and the mode.
        got: Arrays by name: y, h_n, dx, dweight_ih, weight_ih_l0 and the like.
        want: The right ones.
        tolerance: Of ``relative_error``.
        units: H.
        plan: What the kernels' ``plan`` says, with ``backward``.
        reverse: Whether the array's direction runs from the last step to the first (False).

    """
    wrong: list[tuple[str, str]] = []
    for name in sorted(want, key=_order):
        backwards = is_backward(name) != (reverse or {}).get(name, False)
        said = describe(name, got[name], want[name], tolerance, units, from_the_end=backwards)
        if said is not None:
            wrong.append((name, said))
    if not wrong:
        return
    name, said = wrong[0]
    backward = is_backward(name)
    used = plan.get("backward", plan) if backward else plan
    facts = ("path", "groups", "blocks_per_group", "units_per_block", "layers_per_launch")
    text = ", ".join(f"{fact} {used[fact]}" for fact in (*facts, "shared_bytes", "reason"))
    others = f"; wrong too: {', '.join(n for n, _ in wrong[1:])}" if len(wrong) > 1 else ""
    raise AssertionError(
        f"{title}, {'backward' if backward else 'forward'}: {said}{others}; plan: {text}"
    )

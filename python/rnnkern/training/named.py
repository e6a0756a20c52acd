# SPDX-License-Identifier: Apache-2.0
"""Arrays by name out of what holds them: layers, mappings, lists, and these within each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from rnnkern._checks import Array


def named_arrays(what: str, value: Any) -> dict[str, Array]:
    """The arrays in `value` by names that tell the way to each, as ``head.weight``.

    A layer or model stands for its ``params``, and so does what a backward pass gives; a list's
    items are named by their places.

    Raises:
        TypeError: something is no array and holds none.
        ValueError: two arrays have one name.

    """
    held = _held(value)
    if held is None:
        raise TypeError(
            f"{what} must be a layer, a model, arrays by name, or a dict or list of these, "
            f"got {type(value)!r}"
        )
    arrays: dict[str, Array] = {}
    for name, array in _walk(held, ""):
        if not (isinstance(array, np.ndarray) or _is_array(array)):
            raise TypeError(f"{what}[{name!r}] must be an array, got {type(array)!r}")
        if name in arrays:
            raise ValueError(f"{what} must give each array a name, got {name!r} twice")
        arrays[name] = array
    return arrays


def _walk(held: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """All that is held and holds nothing itself."""
    for key, value in held.items():
        name = f"{prefix}{key}"
        inner = None if isinstance(value, np.ndarray) else _held(value)
        if inner is None:
            yield name, value
        else:
            yield from _walk(inner, f"{name}.")


def _held(value: Any) -> Mapping[Any, Any] | None:
    """What `value` holds by name or place; None for an array, and for what holds no array."""
    value = getattr(value, "params", value)
    if isinstance(value, Mapping):
        return value
    if _is_array(value) or isinstance(value, str) or not isinstance(value, Iterable):
        return None
    items = dict(enumerate(value))
    holds = all(_is_array(item) or _held(item) is not None for item in items.values())
    return items if holds else None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")

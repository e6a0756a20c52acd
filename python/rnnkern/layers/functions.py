# SPDX-License-Identifier: Apache-2.0
"""The functions that a layer's gates and states are given, by their names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from rnnkern import _core
from rnnkern._checks import finite_float
from rnnkern.devices import CellOptions, Function

# A name, with its numbers in brackets where they are not its own; or one for each direction.
Functions: TypeAlias = "str | Sequence[str]"

KNOWN: dict[str, tuple[int, float, float]] = _core.functions()
_CALL = r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*"


def function(name: str, value: Any) -> Function:
    """What a text says, as kernels take it: a name, and its numbers alpha and beta.

    Args:
        name: of the argument, for errors.
        value: as "leaky_relu" or "leaky_relu(0.1)".

    Raises:
        TypeError: it is no text.
        ValueError: there is no such function, or it does not take these numbers.

    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    found = re.fullmatch(_CALL, value)
    if found is None or found[1] not in KNOWN:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, KNOWN))}, got {value!r}")
    kind, (count, *numbers) = found[1], KNOWN[found[1]]
    given = [] if found[2] is None else found[2].split(",")
    if given and len(given) != count:
        wanted = f"'{kind}' or '{kind}({', '.join(('alpha', 'beta')[:count])})'"
        raise ValueError(f"{name} must be {wanted if count else repr(kind)}, got {value!r}")
    for k, text in enumerate(given):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{name} must have finite numbers in its brackets, got {value!r}")
        numbers[k] = number
    if kind in ("leaky_relu", "elu") and numbers[0] < 0:
        raise ValueError(f"{name} must have an alpha of at least 0, got {value!r}")
    if kind == "scaled_tanh" and numbers[0] == 0:
        raise ValueError(f"{name} must have an alpha other than 0, got {value!r}")
    return kind, numbers[0], numbers[1]


def text_of(given: Function) -> str:
    """What gives that function: the shortest text."""
    kind, *numbers = given
    count, *own = KNOWN[kind]
    if numbers[:count] == own[:count]:
        return kind
    return f"{kind}({', '.join(repr(n) for n in numbers[:count])})"


def checked(name: str, value: Any, *, bidirectional: bool) -> str | tuple[str, str]:
    """A layer's argument as it keeps it: one function, or one for each direction."""
    if isinstance(value, (tuple, list)):
        if not bidirectional or len(value) != 2:
            raise ValueError(
                f"{name} must be one function or, with bidirectional=True, one for each of the two "
                f"directions, got {value!r}"
            )
        first, second = (text_of(function(f"{name}[{d}]", v)) for d, v in enumerate(value))
        return first if first == second else (first, second)
    return text_of(function(name, value))


def checked_clip(name: str, value: Any) -> float | None:
    """A bound that is above 0, or None."""
    if value is None:
        return None
    bound = finite_float(name, value, minimum=0.0)
    if bound == 0.0:
        raise ValueError(f"{name} must be above 0, or None for no bound, got {value!r}")
    return bound


def of_direction(value: Any, direction: int) -> Any:
    """What one direction has of an argument."""
    return value[direction] if isinstance(value, (tuple, list)) else value


def cell_options(
    cell: str,
    directions: int,
    gate: str | tuple[str, str],
    candidate: str | tuple[str, str],
    output: str | tuple[str, str],
    clip: float | None,
    cell_clip: float | None,
) -> tuple[CellOptions, ...] | None:
    """By direction; None where they are what the cell does by itself."""
    own = ("sigmoid", "relu" if cell == "rnn_relu" else "tanh", "tanh")
    if (clip, cell_clip) == (None, None) and (gate, candidate) == own[:2] and output == candidate:
        return None
    bounds = [math.inf if c is None else c for c in (clip, cell_clip)]
    by_direction = []
    for d in range(directions):
        own_gate, own_candidate, own_output = (
            function("activation", of_direction(f, d)) for f in (gate, candidate, output)
        )
        by_direction.append(CellOptions(own_gate, own_candidate, own_output, *bounds))
    return tuple(by_direction)

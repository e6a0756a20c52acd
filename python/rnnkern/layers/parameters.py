# SPDX-License-Identifier: Apache-2.0
"""Parameters: named arrays, a layer's own for life, written in place and checked on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import to_host
from rnnkern.layers.parameter import Parameter

T = TypeVar("T")

_undrawn = ContextVar("_undrawn", default=False)
_TORCH_BIAS = r"(?P<part>.*)bias_(?P<kind>ih|hh)_(?P<place>l\d+(_reverse)?)"


class Parameters(MutableMapping[str, Array]):
    """The parameters of a layer or model: name -> array, each fixed for life.

    ``params[name]`` is the array itself, to be changed in place. ``params[name] = value`` checks
    the value's shape and dtype, and copies it into that array; ``update`` does so for all of them,
    or for none if one does not fit. Names can neither be added nor removed. Whatever was made from
    a layer (an optimizer, the model that it is part of) therefore sees the same arrays as it does.

    Equality is that of names and values. ``copy`` gives a plain dict of copied arrays, for a later
    ``update``.

    Example:
        >>> params = rk.GRU(3, 4).params
        >>> params["bias_l0"][:] = 0.5
        >>> params["bias_l0"] = np.zeros(12, np.float32)  # checked, and copied
        >>> float(params["bias_l0"].sum())
        0.0

    """

    def __init__(
        self, parameters: Mapping[str, Parameter], values: Iterable[Any] | None = None
    ) -> None:
        """Of these parameters, by name; `values` are their first ones, unless they have some."""
        self._parameters = dict(parameters)
        if values is not None and not _undrawn.get():
            for parameter, value in zip(self._parameters.values(), values, strict=True):
                parameter.fill(value)

    @classmethod
    def joined(cls, parts: Mapping[str, Parameters]) -> Parameters:
        """The parameters of several layers as one mapping, by ``part.name``: the same arrays."""
        return cls(
            {
                f"{part}.{name}": parameter
                for part, params in parts.items()
                for name, parameter in params._parameters.items()
            }
        )

    def specs(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Name -> (shape, dtype), for which no array is needed."""
        return {name: (p.shape, p.dtype) for name, p in self._parameters.items()}

    def fill(self, arrays: Mapping[str, Any]) -> None:
        """Give an undrawn model its memory and values: arrays of `specs`, NumPy's or the device's.

        The caller has checked them.
        """
        for name, parameter in self._parameters.items():
            parameter.fill(arrays[name])

    def adopt(self, arrays: Mapping[str, Array]) -> None:
        """Have an undrawn model read these arrays themselves, whoever else writes to them.

        The caller has checked them: they are as `specs` says, and C-contiguous.
        """
        for name, parameter in self._parameters.items():
            parameter.adopt(arrays[name])

    def __getitem__(self, name: str) -> Array:
        return self._find(name).seen()

    def __setitem__(self, name: str, value: Any) -> None:
        parameter = self._find(name)
        if value is parameter.seen():  # params[name] -= step has done its work
            return
        parameter.own[...] = self._checked(name, value)

    def update(self, values: Any = (), /, **more: Any) -> None:
        """Copy a value into every array: of all names, or nothing is changed.

        Raises:
            KeyError: names are unknown or missing; set ``params[name]`` for a single one.
            TypeError, ValueError: a value is of another dtype or shape.

        """
        given = dict(values, **more)
        for name in given:
            self._find(name)
        missing = self._parameters.keys() - given.keys()
        if missing:
            raise KeyError(
                f"params.update needs a value for every name, and lacks {_listed(missing)}: "
                "params[name] = value sets a single one"
            )
        checked = {name: self._checked(name, given[name]) for name in self._parameters}
        for name, array in checked.items():
            self._parameters[name].own[...] = array

    def copy(self) -> dict[str, Array]:
        """The values as they are now: a dict of copied arrays."""
        return {name: array.copy() for name, array in self.items()}

    __copy__ = copy

    def setdefault(self, name: str, default: Any = None) -> Array:
        """The array of that name, which must be known."""
        return self[name]

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(f"params cannot lose {name!r}: the names are fixed, the values are not")

    def pop(self, name: str, *default: Any) -> NoReturn:
        """Refused: names are fixed."""
        del self[name]

    def popitem(self) -> NoReturn:
        """Refused: names are fixed."""
        del self[next(iter(self), "")]

    def clear(self) -> NoReturn:
        """Refused: names are fixed."""
        self.popitem()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(
            np.array_equal(to_host(array), to_host(other[name])) for name, array in self.items()
        )

    __hash__ = None  # type: ignore[assignment]  # as of all that can change

    def __repr__(self) -> str:
        listed = (f"{name}: {p.dtype.name} {p.shape}" for name, p in self._parameters.items())
        return f"{type(self).__name__}({', '.join(listed)})"

    def _checked(self, name: str, value: Any) -> Array:
        """A value that fits; copied where it reads what writing it, or another, would change."""
        parameter = self._parameters[name]
        array = parameter.checked(f"params[{name!r}]", value)
        return array.copy() if any(p.overlaps(array) for p in self._parameters.values()) else array

    def _find(self, name: str) -> Parameter:
        parameter = self._parameters.get(name)
        if parameter is None:
            raise KeyError(self._unknown(name))
        return parameter

    def _unknown(self, name: str) -> str:
        text = f"params has no {name!r}, only {_listed(self._parameters)}"
        found = re.fullmatch(_TORCH_BIAS, name) if isinstance(name, str) else None
        if found is None:
            return text
        bias, apart = (f"{found['part']}{kind}_{found['place']}" for kind in ("bias", "bias_hn"))
        if bias not in self._parameters:
            return text
        ih, hh = (f"{found['part']}bias_{kind}_{found['place']}" for kind in ("ih", "hh"))
        text += f". PyTorch's two biases are one here: {bias} = {ih} + {hh}"
        if apart in self._parameters:
            text += f", but for the last third of {hh}, which is {apart}"
        return text


def undrawn(make: Callable[..., T], config: Mapping[str, Any]) -> T:
    """``make(**config)`` whose ``params`` have ``specs`` but no memory until ``params.fill``."""
    token = _undrawn.set(True)
    try:
        return make(**config)
    finally:
        _undrawn.reset(token)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))

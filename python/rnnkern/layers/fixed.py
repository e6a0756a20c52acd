# SPDX-License-Identifier: Apache-2.0
"""Objects whose facts stay as their constructor set them."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn


class ReadOnly:
    """Values by name that stay as the constructor sets them, in ``vars(self)``.

    A frozen dataclass does the same, and takes a millisecond of everyone's import.
    """

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{name} of {type(self).__name__} is read-only")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name} of {type(self).__name__} is read-only")


class Fixed:
    """What the constructor has set when it calls ``_settle`` is read-only, but for ``_private``.

    Tapes and kernels rely on it; attributes that others add are theirs. What it was given is in
    ``config``.
    """

    _facts: frozenset[str] = frozenset()

    def _settle(self) -> None:
        self._facts = frozenset(name for name in vars(self) if not name.startswith("_"))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal one can be built."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """The call that builds an equal one; arguments that are as by default are left out."""
        return call_text(self)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse(name)
        super().__delattr__(name)

    def _refuse(self, name: str) -> None:
        if name in self._facts:
            kind, remedy = (
                type(self).__name__,
                "params[name] = value and params.update copy into it",
            )
            if name != "params":
                remedy = f"build a new {kind}"
            raise AttributeError(f"{name} of {kind} is read-only: {remedy}")


def call_text(of: Fixed, *, without: tuple[str, ...] = ()) -> str:
    """The call that builds an equal one, with no arguments that are as by default or unwanted."""
    config, shown = of.config(), []
    for name, parameter in inspect.signature(type(of)).parameters.items():
        if parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            shown.append(repr(config[name]))
        elif config[name] != parameter.default and name not in without:
            shown.append(f"{name}={config[name]!r}")
    return f"{type(of).__name__}({', '.join(shown)})"

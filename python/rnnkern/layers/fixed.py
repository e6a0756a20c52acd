# SPDX-License-Identifier: Apache-2.0
"""Objects whose facts stay as their constructor set them."""

from __future__ import annotations

from typing import Any


class Fixed:
    """What the constructor has set when it calls ``_settle`` is read-only, but for ``_private``.

    Tapes and kernels rely on it; attributes that others add are theirs.
    """

    _facts: frozenset[str] = frozenset()

    def _settle(self) -> None:
        self._facts = frozenset(name for name in vars(self) if not name.startswith("_"))

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

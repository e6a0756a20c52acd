"""Objects whose public attributes stay as their constructor set them."""

from __future__ import annotations

from typing import Any


class Fixed:
    """Attributes without a leading underscore are set once: tapes and kernels rely on them."""

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse(name)
        super().__delattr__(name)

    def _refuse(self, name: str) -> None:
        if name.startswith("_") or name not in vars(self):
            return
        kind = type(self).__name__
        if name == "params":
            remedy = "params[name] = value and params.update(...) copy values into its arrays"
        else:
            remedy = f"build a new {kind}"
        raise AttributeError(f"{name} of {kind} is read-only: {remedy}")

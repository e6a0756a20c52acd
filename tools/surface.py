# SPDX-License-Identifier: Apache-2.0
"""Writes down what users can name: python tools/surface.py, after a change that is meant.

docs/surface.txt holds every name of ``rnnkern.__all__`` with its signature, and the public members
of the classes; a test compares it, so that nothing of it changes by accident.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rnnkern

PATH = Path(__file__).resolve().parents[1] / "docs" / "surface.txt"


class _AsWritten(str):
    """An annotation without quotation marks."""

    __slots__ = ()
    __repr__ = str.__str__

    def __new__(cls, annotation: Any) -> _AsWritten:
        return super().__new__(cls, getattr(annotation, "__forward_arg__", annotation))


def _signature(value: Any) -> str:
    found = inspect.signature(value)
    parameters = [
        p if p.annotation is p.empty else p.replace(annotation=_AsWritten(p.annotation))
        for p in found.parameters.values()
    ]
    returned: Any = found.return_annotation
    if returned is not found.empty:
        returned = _AsWritten(returned)
    return str(found.replace(parameters=parameters, return_annotation=returned))


def _members(cls: type) -> Iterator[str]:
    """What this package gives an instance, inherited or not."""
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "rnnkern"]
    annotated = {name: base.__annotations__[name] for base in ours for name in _annotated(base)}
    for name in sorted({name for base in ours for name in vars(base)} | set(annotated)):
        if name.startswith("_") and name != "__call__":
            continue
        value = inspect.getattr_static(cls, name, None)
        if isinstance(value, property):
            kind = inspect.signature(value.fget).return_annotation if value.fget else ""
            yield f"{name}: {kind}{'' if value.fset else ', read only'}"
        elif isinstance(value, (staticmethod, classmethod)) or inspect.isroutine(value):
            yield f"{name}{_signature(getattr(cls, name))}"
        else:
            yield f"{name}: {_AsWritten(annotated[name])}" if name in annotated else name


def _annotated(cls: type) -> Iterator[str]:
    yield from vars(cls).get("__annotations__", {})


def _lines() -> Iterator[str]:
    for name in sorted(rnnkern.__all__):
        value = getattr(rnnkern, name)
        if isinstance(value, type):
            if issubclass(value, Exception):
                yield f"class {name}: {value.__bases__[0].__name__}"
                continue
            yield f"class {name}{_signature(value)}"
            yield from (f"  {member}" for member in _members(value))
        elif callable(value):
            yield f"{name}{_signature(value)}"
        else:
            yield f"{name}: {type(value).__name__}"


def surface() -> str:
    """The text of docs/surface.txt."""
    return "\n".join(_lines()) + "\n"


if __name__ == "__main__":
    PATH.write_text(surface(), encoding="utf-8")

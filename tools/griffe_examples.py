# SPDX-License-Identifier: Apache-2.0
"""Docstrings say "Example:" above theirs; the reader of docstrings knows "Examples:" alone."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):  # type: ignore[misc, unused-ignore]
    """Has examples shown as code."""

    def on_object(self, *, obj: Any, **further: Any) -> None:
        """Called for everything that is read."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:", "Examples:", text, flags=re.MULTILINE)

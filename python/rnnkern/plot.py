# SPDX-License-Identifier: Apache-2.0
"""Pictures need matplotlib, and nothing else does."""

from __future__ import annotations


def require_matplotlib() -> None:
    """Raise an ImportError that says what to install, unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'rnnkern[plot]'") from error

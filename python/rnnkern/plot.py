# SPDX-License-Identifier: Apache-2.0
"""A picture of a training run; matplotlib is needed for this alone."""

from __future__ import annotations

import os

from rnnkern._checks import Array


def require_matplotlib() -> None:
    """Raise an ImportError that says what to install, unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'rnnkern[plot]'") from error


def plot_training(path: str | os.PathLike[str], title: str, history: Array) -> None:
    """Write loss and share of wrong answers over time as a PNG.

    Args:
        path: The file to write.
        title: Printed above.
        history: (points, 4): step, seconds, loss in nats, share of held-out answers right in 0..1.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.

    """
    require_matplotlib()
    from matplotlib.figure import Figure

    _, seconds, loss, right = history.T
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.set_title(title)
    above.semilogy(seconds, loss)
    above.set_ylabel("training loss (nats per digit)")
    below.plot(seconds, 100.0 * (1.0 - right), marker=".")
    below.set_yscale("symlog", linthresh=0.1)  # 0 is where the run should end
    below.set_ylim(bottom=0.0)
    below.set_ylabel("held-out answers wrong (%)")
    below.set_xlabel("seconds")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png")

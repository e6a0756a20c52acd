# SPDX-License-Identifier: Apache-2.0
"""A picture of a training run of the adder."""

from __future__ import annotations

import os

from rnnkern._checks import Array
from rnnkern.plot import require_matplotlib


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

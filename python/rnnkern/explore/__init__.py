# SPDX-License-Identifier: Apache-2.0
"""The classic experiments with recurrent networks, each as one function and one command."""

from rnnkern.explore.adding import adding
from rnnkern.explore.adding import figure as _figure_of_adding
from rnnkern.explore.agreement import agreement
from rnnkern.explore.agreement import figure as _figure_of_agreement
from rnnkern.explore.clipping import clipping
from rnnkern.explore.clipping import figure as _figure_of_clipping
from rnnkern.explore.common import CELLS, Experiment, Result
from rnnkern.explore.copy import copy
from rnnkern.explore.copy import figure as _figure_of_copy
from rnnkern.explore.depth import depth
from rnnkern.explore.depth import figure as _figure_of_depth
from rnnkern.explore.gradients import figure as _figure_of_gradients
from rnnkern.explore.gradients import gradients
from rnnkern.explore.names import figure as _figure_of_names
from rnnkern.explore.names import names
from rnnkern.explore.review import figure as _figure_of_review
from rnnkern.explore.review import review

__all__ = [
    "CELLS",
    "EXPERIMENTS",
    "Experiment",
    "Result",
    "adding",
    "agreement",
    "clipping",
    "copy",
    "depth",
    "gradients",
    "names",
    "review",
]

EXPERIMENTS: dict[str, Experiment] = {
    "gradients": Experiment(
        "gradients that vanish or explode with the distance, and the paths they take",
        gradients,
        _figure_of_gradients,
    ),
    "clipping": Experiment(
        "a loss that blows up, and two ways of clipping that keep it",
        clipping,
        _figure_of_clipping,
    ),
    "agreement": Experiment(
        "was or were, by the number of a noun far back", agreement, _figure_of_agreement
    ),
    "adding": Experiment("the sum of two marked numbers among many", adding, _figure_of_adding),
    "copy": Experiment("ten symbols, said again much later", copy, _figure_of_copy),
    "review": Experiment("reviews of which only a few words matter", review, _figure_of_review),
    "names": Experiment(
        "Teddy the person or the bear, by a word before or after", names, _figure_of_names
    ),
    "depth": Experiment(
        "one, two and three layers of the same number of parameters", depth, _figure_of_depth
    ),
}

# SPDX-License-Identifier: Apache-2.0
"""The classic experiments with recurrent networks, each as one function and one command."""

from rnnkern.explore.adding import adding
from rnnkern.explore.agreement import agreement
from rnnkern.explore.clipping import clipping
from rnnkern.explore.copy import copy
from rnnkern.explore.depth import depth
from rnnkern.explore.gradients import gradients
from rnnkern.explore.names import names
from rnnkern.explore.result import Result
from rnnkern.explore.review import review
from rnnkern.explore.run import Experiment, Run

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Result",
    "Run",
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
    program.name: program
    for program in (gradients, clipping, agreement, adding, copy, review, names, depth)
}

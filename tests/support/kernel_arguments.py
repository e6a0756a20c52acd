# SPDX-License-Identifier: Apache-2.0
"""Arguments of the kernels themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern.devices import LayerSpec, Weights

from support.layers import draw

STEPS, BATCH, UNITS = 5, 3, 4


SPEC = LayerSpec("lstm", 3, UNITS)


def weights() -> dict[str, Any]:
    return {
        "weight_ih": draw(4 * UNITS, 3),
        "weight_hh": draw(4 * UNITS, UNITS),
        "bias": draw(4 * UNITS),
        "bias_hn": draw(UNITS),
    }


def forward_arguments() -> dict[str, Any]:
    return {
        "x": draw(STEPS, BATCH, 3),
        "h": draw(1, BATCH, UNITS),
        "c": draw(1, BATCH, UNITS),
        "lengths": np.array([5, 0, 2]),
        "y": np.zeros((STEPS, BATCH, UNITS), np.float32),
    }


def forward(x: Any, h: Any, c: Any, lengths: Any, y: Any) -> Any:
    return _core.Network(SPEC, [Weights(**weights())]).forward(x, lengths, h, c, y, (), True)


def network(weight_ih: Any, weight_hh: Any, bias: Any, bias_hn: Any) -> Any:
    return _core.Network(SPEC, [(weight_ih, weight_hh, bias, bias_hn)])

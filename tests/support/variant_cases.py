# SPDX-License-Identifier: Apache-2.0
"""Layers with options of the cells' equations, for tests of every path that has them."""

from __future__ import annotations

from typing import Any

import numpy as np

import rnnkern as rk

SMOOTH = ["sigmoid", "softsign", "softplus", "identity", "affine(0.7, 0.2)", "elu", "elu(0.5)"]
SMOOTH += ["scaled_tanh(1.7159, 0.6667)"]
KINKED = ["relu", "hard_sigmoid", "hard_sigmoid(0.2, 0.5)", "leaky_relu", "leaky_relu(0.3)"]
KINKED += ["thresholded_relu(0.4)", "thresholded_relu(-0.4)"]

Case = tuple[type[Any], dict[str, Any]]
OLD_KERAS = {"recurrent_activation": "hard_sigmoid(0.2, 0.5)"}
# What a sigmoid's symmetry does not carry: z and 1 - z part.
ODD = {"recurrent_activation": "tanh", "activation": "sigmoid"}
APART = {"activation": ("tanh", "softsign"), "recurrent_activation": ("hard_sigmoid", "sigmoid")}
GATED: list[Case] = [
    (rk.SimplifiedGRU, {}),
    (rk.MGU, {}),
    (rk.GRU, {}),
    (rk.GRU, {"reset": "after"}),
]
ALL_GATED: list[Case] = [*GATED, (rk.LSTM, {})]
LSTMS: list[dict[str, Any]] = [
    {"peepholes": True},
    {"coupled": True},
    {"peepholes": True, "coupled": True},
    {"cell_clip": 0.4},
    {"output_activation": "softsign"},
    {"output_activation": ("identity", "tanh"), "activation": ("relu", "elu")},
    {"peepholes": True, "coupled": True, "clip": 0.8, "cell_clip": 0.5, **OLD_KERAS},
    {"peepholes": True, "clip": 0.8, **APART},
]
EXACT: list[Case] = [  # where rounding to float32 meets no kink
    *((rk.RNN, {"nonlinearity": f}) for f in SMOOTH),
    *((rk.LSTM, options) for options in LSTMS[:3]),
    *((kind, {**own, **ODD}) for kind, own in ALL_GATED),
]
CASES: list[Case] = [
    *EXACT,
    *((rk.RNN, {"nonlinearity": f}) for f in [*KINKED, ("relu", "leaky_relu(0.2)")]),
    (rk.RNN, {"clip": 0.5}),
    *((rk.LSTM, options) for options in LSTMS[3:]),
    *(
        (kind, {**own, **options})
        for kind, own in ALL_GATED
        for options in (
            {"clip": 0.6},
            {**OLD_KERAS, "activation": "relu"},
            {"clip": 0.6, **ODD},
            APART,
        )
    ),
]
# One of each kind, where every path is gone.
WAYS: list[Case] = [
    (rk.RNN, {"nonlinearity": "softsign", "clip": 0.9}),
    *((kind, {**own, **OLD_KERAS, "clip": 0.9}) for kind, own in GATED),
    (rk.LSTM, {"peepholes": True, "coupled": True, "cell_clip": 0.5, **OLD_KERAS}),
    (rk.LSTM, {"peepholes": True, "activation": "elu", "output_activation": "tanh"}),
]


def make(case: Case, *sizes: int, **options: Any) -> Any:
    kind, own = case
    layer = kind(*sizes, **own, **options)
    rng = np.random.default_rng(1)
    for p in layer.params.values():
        p[...] = rng.uniform(-1.0, 1.0, p.shape)
    return layer


def one_way(case: Case) -> Case:
    """With the first direction's functions alone."""
    kind, own = case
    return kind, {k: v[0] if isinstance(v, tuple) else v for k, v in own.items()}

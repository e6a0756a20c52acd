# SPDX-License-Identifier: Apache-2.0
"""Parameters as ONNX's operators lay them out."""

from __future__ import annotations

import numpy as np

from support.reference import Array

# Where ONNX keeps the blocks of our gates, in our order; it has z = 1 - u, so u's rows turn sign.
_ONNX_GATES: dict[str, list[tuple[int, int]]] = {
    "RNN": [(0, 1)],
    "GRU": [(1, 1), (0, -1), (2, 1)],
    "LSTM": [(0, 1), (2, 1), (3, 1), (1, 1)],
}


def _reorder_onnx(op: str, rows: Array) -> Array:
    blocks = np.split(rows, len(_ONNX_GATES[op]))
    return np.concatenate([sign * blocks[k] for k, sign in _ONNX_GATES[op]])


def from_onnx(
    op: str, w: Array, r: Array, b: Array | None = None, *, linear_before_reset: bool = False
) -> dict[str, Array]:
    """Our parameters of one layer from ONNX's W (D, G*H, I), R (D, G*H, H) and B (D, 2*G*H)."""
    params: dict[str, Array] = {}
    for d, ending in zip(range(len(w)), ("_l0", "_l0_reverse"), strict=False):
        params["weight_ih" + ending] = _reorder_onnx(op, w[d])
        params["weight_hh" + ending] = _reorder_onnx(op, r[d])
        if b is None:
            continue
        of_w, of_r = (_reorder_onnx(op, half) for half in np.split(b[d], 2))
        if linear_before_reset:
            # The recurrent bias of the candidate stands inside the product with r.
            hidden = r.shape[2]
            params["bias_hn" + ending] = of_r[-hidden:].copy()
            of_r[-hidden:] = 0.0
        params["bias" + ending] = of_w + of_r
    return params

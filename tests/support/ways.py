# SPDX-License-Identifier: Apache-2.0
"""All the ways in which a layer can be run, which give the same bits."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern.cells import CELLS

from support.compare import assert_same_bits
from support.layers import as_layer_state, as_tuple
from support.reference import Array, State


def check_ways(
    layer: Any, x: Array, state: State, folder: Path, *, drops: bool = False
) -> tuple[Array, State]:
    """A call of a layer of one direction, once every other way has given its bits too.

    Copies and the file of it, at once and in pieces, by steps and blocks, single rows; and as it is
    trained, unless it ``drops`` anything there.
    """
    given = as_layer_state(state)
    y, end = layer(x, given)
    last = as_tuple(end)
    loaded = saved_and_loaded(layer, folder)
    steps, batch = x.shape[:2]
    cut = steps // 3
    stream, blocks = layer.stream(batch=batch), layer.stream(batch=batch)
    stream.state = blocks.state = given
    begun, between = layer(x[:cut], given)
    rest, ended = layer(x[cut:], between)
    ways = {
        "frozen": layer.freeze()(x, given),
        "loaded": loaded(x, given),
        "copied": copy.deepcopy(layer)(x, given),
        "pickled": pickle.loads(pickle.dumps(layer))(x, given),
        "in pieces": (np.concatenate([begun, rest]), ended),
        "by steps": (np.stack([stream.step(x_t) for x_t in x]), stream.state),
        "by blocks": (np.concatenate([blocks.block(p) for p in (x[:cut], x[cut:])]), blocks.state),
    }
    stream.state = given
    ways["by one block"] = stream.block(x), stream.state
    if not drops:
        ways["trained"] = layer.forward(x, given)[:2]
    for name, (again, own) in ways.items():
        assert_same_bits(name, again, y)
        for got, want in zip(as_tuple(own), last, strict=True):
            assert_same_bits(f"the state {name}", got, want)
    for row in {0, batch // 2, batch - 1}:
        of_row = slice(row, row + 1)
        alone, _ = layer(x[:, of_row].copy(), as_layer_state(tuple(s[:, of_row] for s in state)))
        assert_same_bits(f"row {row} alone", alone, y[:, of_row])
    return y, last


def saved_and_loaded(layer: Any, folder: Path) -> Any:
    """The layer that was read from a file of this one."""
    rk.save(folder / "layer.safetensors", layer)
    loaded: Any = rk.load(folder / "layer.safetensors")
    assert loaded.config() == layer.config()
    return loaded


def check_cell(layer: Any, x: Array, state: State, y: Array) -> None:
    """The cell of a layer, step by step, gives that y to the bit."""
    cell = next(c.step for c in CELLS.values() if c.layer is type(layer)).of(layer)
    now = tuple(s[0] for s in state)
    for t, x_t in enumerate(x):
        now = as_tuple(cell(x_t, as_layer_state(now)))
        assert_same_bits(f"cell at step {t}", now[0], y[t])

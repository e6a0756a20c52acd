# SPDX-License-Identifier: Apache-2.0
"""What training drops, as calls show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import rnnkern as rk

from support import differences, layers
from support.compare import assert_close, assert_same_bits
from support.layers import arrays, as_layer_state, as_tuple, make
from support.reference import Array
from support.threads import check_same_bits
from support.ways import check_ways, saved_and_loaded

STEPS, BATCH, INPUTS, HIDDEN, KEY = 6, 5, 3, 11, 7
RAGGED = np.array([12, 3, 0, 7, 12, 1, 2, 9, 5])


def computed(layer: Any, *given: Any, **options: Any) -> dict[str, Array]:
    """All that ``forward`` and its backward pass give, by name, with this module's key."""
    return layers.computed(layer, *given, **{"dropout_key": KEY, **options})


def check_differences(layer: Any, *given: Any, **options: Any) -> None:
    """Every gradient of a float64 layer is that of finite differences."""
    differences.check_layer(layer, *given, dropout_key=KEY, **options)


def check_share(kept: Array, share: float) -> None:
    """So many are kept as may be, within five standard deviations."""
    deviation = np.sqrt(share * (1.0 - share) / kept.size)
    assert abs(float(kept.mean()) - (1.0 - share)) <= 5.0 * deviation


def h_factors(layer: Any, batch: int = BATCH, key: int = KEY) -> Array:
    """Of h (L·D, B, P), its ``recurrent_dropout``: what a layer that passes h on gives of ones."""
    shape = as_tuple(layer(np.zeros((1, batch, layer.input_size), layer.dtype))[1])[0].shape
    twin = rk.RNN(
        1,
        shape[2],
        layer.num_layers,
        nonlinearity="identity",
        bidirectional=layer.bidirectional,
        dtype=layer.dtype,
        recurrent_dropout=layer.recurrent_dropout,
    )
    for name, p in twin.params.items():
        p[...] = np.eye(shape[2]) if name.startswith("weight_hh") else 0.0
    x, ones = np.zeros((1, batch, 1), layer.dtype), np.ones(shape, layer.dtype)
    return as_tuple(twin.forward(x, ones, dropout_key=key)[1])[0]


def check_pieces(layer: Any, lengths: Array | None = RAGGED) -> tuple[dict[str, Array], ...]:
    """Any team of threads gives the same; calls in pieces give what whole ones do.

    The results of the whole call, and of one that ends gradients after some steps.
    """
    given = arrays(layer, 12, 9)

    def both() -> dict[str, Array]:
        of_inference = {"y of inference": layer(given[0])[0]}
        return of_inference | computed(layer, *given, lengths=lengths)

    want = check_same_bits(both)
    check_recompute(layer, *given, lengths=lengths)
    cut = computed(layer, *given, lengths=lengths, tbptt=5)
    assert_same_bits("y with tbptt", cut["y"], want["y"])
    return want, cut


def check_recompute(layer: Any, *given: Any, every: int = 5, lengths: Any = None) -> None:
    """Gradients of what is computed anew: those of weights are summed in another order."""
    want = computed(layer, *given, lengths=lengths)
    got = computed(layer, *given, lengths=lengths, recompute=every)
    assert got.keys() == want.keys()
    for name, array in want.items():
        if name in ("y", "dx", "h_n", "dh_0", "c_n", "dc_0"):
            assert_same_bits(f"{name} with recompute", got[name], array)
        else:
            assert_close(f"{name} with recompute", got[name], array, 1e-5)


def check_inference(cell: str, folder: Path, **drops: float) -> None:
    """Whatever runs a layer but ``forward`` drops nothing."""
    layer, plain = make(cell, INPUTS, HIDDEN, **drops), make(cell, INPUTS, HIDDEN)
    x, state, _, _ = arrays(layer, STEPS, BATCH)
    y, last = check_ways(layer, x, state, folder, drops=True)
    given = as_layer_state(state)
    want, end = plain(x, given)
    assert_same_bits("y", y, want)
    for got, part in zip(last, as_tuple(end), strict=True):
        assert_same_bits("state", got, part)
    loaded = saved_and_loaded(layer, folder)
    assert {name: getattr(loaded, name) for name in drops} == drops
    assert not np.array_equal(layer.forward(x, given, dropout_key=KEY)[0], want)


def check_tokens_and_bfloat16(cell: str, mask: Array | None, **drops: float) -> None:
    """Tokens are one-hot rows, in training too; products of rounded operands are near."""
    layer = make(cell, INPUTS, HIDDEN, **drops)
    tokens = np.random.default_rng(0).integers(0, INPUTS, (STEPS, BATCH))
    hot = np.eye(INPUTS, dtype=np.float32)[tokens]
    options = {"mask": mask, "dropout_key": KEY}
    want, _, tape = layer.forward(hot, **options)
    assert_close("y of tokens", layer.forward(tokens, **options)[0], want, 1e-6)
    rounded = make(cell, INPUTS, HIDDEN, compute="bfloat16", **drops)
    y, _, own = rounded.forward(hot, **options)
    assert_close("y in bfloat16", y, want, 0.02)
    exact, other = (t.backward(np.ones_like(y)).params for t in (tape, own))
    for name, array in exact.items():
        assert_close(f"{name} in bfloat16", other[name], array, 0.05)
    stream = rounded.stream(batch=BATCH)
    steps = np.stack([stream.step(x_t) for x_t in hot])
    assert_same_bits("stream in bfloat16", steps, rounded(hot)[0])

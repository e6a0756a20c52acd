# SPDX-License-Identifier: Apache-2.0
"""What parameters are before anything is learned."""

from __future__ import annotations

import numpy as np
import pytest

import rnnkern as rk

from support.reference import Array


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_values_fill_their_range(dtype: str) -> None:
    layer = rk.LSTM(30, 64, 2, bidirectional=True, dtype=dtype, seed=0)
    for name, array in layer.params.items():
        assert array.dtype == dtype
        assert_uniform(name, array, 64**-0.5)


def test_linears_values_are_bounded_by_its_inputs() -> None:
    for name, array in rk.Linear(100, 400, seed=0).params.items():
        assert_uniform(name, array, 0.1)


def assert_uniform(name: str, array: Array, bound: float) -> None:
    """All within ±bound, near both ends, and with the mean and variance of the distribution."""
    assert np.abs(array).max() <= bound, name
    assert array.max() > 0.95 * bound, name
    assert array.min() < -0.95 * bound, name
    assert abs(array.mean()) < 5 * bound / np.sqrt(3 * array.size), name
    assert array.var() == pytest.approx(bound**2 / 3, rel=0.2), name


def test_orthogonal_matrices_are_of_either_sign() -> None:
    """A QR factorisation alone gives a 1 x 1 matrix one sign, not both alike."""
    signs = [
        rk.RNN(1, 1, seed=seed, recurrent_init="orthogonal").params["weight_hh_l0"].item()
        for seed in range(64)
    ]
    assert set(signs) == {-1.0, 1.0}
    assert 16 <= signs.count(1.0) <= 48


def test_a_seed_repeats_and_none_does_not() -> None:
    layers = [rk.GRU(3, 4, seed=seed) for seed in (1, 1, 2, None, None)]
    first, again, *others = (layer.params["weight_ih_l0"].tobytes() for layer in layers)
    assert first == again
    assert len({first, *others}) == 4

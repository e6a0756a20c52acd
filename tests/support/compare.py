# SPDX-License-Identifier: Apache-2.0
"""Arrays held against each other."""

from __future__ import annotations

import numpy as np

from support.reference import Array


def relative_error(got: Array, want: Array) -> float:
    """The norm of the difference over that of ``want``; infinite where only ``want`` is zero."""
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error = float(np.linalg.norm(got.astype(np.float64) - want))
    size = float(np.linalg.norm(want))
    if size == 0.0:
        return 0.0 if error == 0.0 else np.inf
    return error / size


def assert_close(what: str, got: Array, want: Array, tolerance: float) -> None:
    """``got`` is within the norm-wise relative tolerance of ``want`` (NaN never is)."""
    error = relative_error(got, want)
    assert error <= tolerance, f"{what}: relative error {error:.3g}, expected <= {tolerance:g}"


def assert_same_bits(what: str, got: Array, want: Array) -> None:
    """The two arrays are of one dtype and shape and the same byte for byte."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape), what
    assert got.tobytes() == want.tobytes(), f"{what}: {np.sum(got != want)} numbers differ"


def rounded(array: Array) -> Array:
    """To the nearest bfloat16: 8 significant bits, ties to even."""
    fraction, exponent = np.frexp(array.astype(np.float64))
    return np.ldexp(np.round(fraction * 256) / 256, exponent).astype(np.float32)

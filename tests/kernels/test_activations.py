# SPDX-License-Identifier: Apache-2.0
"""tanh, sigmoid and exp as the kernels compute them, swept over their range in both dtypes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from rnnkern import _core

from support.activations import NAMES, check_float32, check_float64


@pytest.mark.parametrize("name", NAMES)
def test_float32(name: str) -> None:
    check_float32(name)


@pytest.mark.parametrize("name", NAMES)
def test_float64(name: str) -> None:
    check_float64(name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_not_finite(dtype: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0], dtype)
    tanh = _core.activation("tanh", x)
    np.testing.assert_array_equal(tanh, np.array([1, -1, np.nan, np.nan, 0, 0], dtype))
    np.testing.assert_array_equal(np.signbit(tanh[4:]), [False, True])
    sigmoid = _core.activation("sigmoid", x)
    np.testing.assert_array_equal(sigmoid[2:], np.array([np.nan, np.nan, 0.5, 0.5], dtype))
    assert sigmoid[0] == 1.0
    assert 0.0 <= sigmoid[1] <= np.finfo(dtype).tiny
    exp = _core.activation("exp_negative", x[1:])
    np.testing.assert_array_equal(exp, np.array([0, np.nan, np.nan, 1, 1], dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_alone_and_in_a_tail_is_the_same(name: str, dtype: str) -> None:
    """Whatever the lane count, each place of an array of any length computes the same."""
    x = np.linspace(-4.0, 0.0 if name == "exp_negative" else 4.0, 67).astype(dtype)
    whole = _core.activation(name, x)
    for n in range(1, 35):
        np.testing.assert_array_equal(_core.activation(name, x[:n].copy()), whole[:n])
        np.testing.assert_array_equal(_core.activation(name, x[n:].copy()), whole[n:])


@pytest.mark.parametrize("name", NAMES)
def test_monotone_where_it_matters(name: str) -> None:
    """Between points far enough apart for the error bound, the order is kept."""
    x = np.linspace(-5.0, 0.0 if name == "exp_negative" else 5.0, 20_001).astype(np.float32)
    assert np.all(np.diff(_core.activation(name, x)) > 0.0)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"(?s)(?=.*cosh)(?=.*tanh)(?=.*sigmoid)"):
        _core.activation("cosh", np.zeros(3, np.float32))


def constants(name: str, last: str) -> list[str]:
    """The numbers between two pieces of the kernels' source, comments left out."""
    text = (Path(__file__).parents[2] / "csrc/core/activations.h").read_text("utf-8")
    begin = text.index(name)
    code = re.sub("//.*", "", text[begin : text.index(last, begin)])
    return re.findall(r"(?<![\w.])-?\d+\.\d+(?:e-?\d+)?", code)


@pytest.mark.parametrize(("name", "dtype"), [("float", "float32"), ("double", "float64")])
def test_range_reduction_has_the_constants_that_it_says(name: str, dtype: str) -> None:
    kind, info = np.dtype(dtype).type, np.finfo(dtype)
    found = (kind(c) for c in constants(f"ExpConstants<{name}>", "};"))
    magic, high, low, least, most, one = found
    assert magic == kind(1.5) * kind(2) ** info.nmant
    ln2 = np.log(np.longdouble(2))
    assert abs(high + np.longdouble(low) - ln2) <= np.spacing(low)
    zeros = int(np.ldexp(np.float64(high), info.nmant + 1))  # high's digits as a whole number
    assert zeros % 2 ** (9 if dtype == "float32" else 21) == 0
    normal = np.log(np.longdouble(info.tiny))
    assert normal <= least <= normal + np.spacing(abs(least))
    assert np.exp(np.longdouble(most)) < info.max
    assert np.rint(most / ln2) < info.maxexp
    assert 1 - np.tanh(np.longdouble(one)) < info.epsneg / 2


def test_the_polynomials_are_as_good_as_they_say() -> None:
    """Of e^r - 1 for |r| <= ln 2 / 2, relatively: float32's fitted, float64's the series."""
    found = constants("exp_rest(V r)", "exp_parts(V x)")
    fitted, series = [np.float32(c) for c in found[:6]], [float(c) for c in found[6:]]
    assert series == [1 / math.factorial(k) for k in range(13, 1, -1)]
    largest = np.log(np.longdouble(2)) / 2
    r = np.linspace(-largest, largest, 100_000)
    for coefficients, bound in ((fitted, 3e-9), (series, 2e-17)):
        q = np.polyval(np.array(coefficients, np.longdouble), r)
        assert np.max(np.abs((r + r * r * q) / np.expm1(r) - 1)) < bound

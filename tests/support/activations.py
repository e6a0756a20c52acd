# SPDX-License-Identifier: Apache-2.0
"""tanh, sigmoid and exp of the kernels, swept over their range."""

from __future__ import annotations

import numpy as np

from rnnkern import _core

from support.reference import Array

NAMES = ["tanh", "sigmoid", "exp_negative"]

# Units in the last place, over the whole range.
BOUND = {"float32": 3.0, "float64": 3.0}


def exact(name: str, x: Array) -> Array:
    """In float64 for float32, in NumPy's longest float for float64; no branch cancels."""
    z = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    e = np.exp(-np.abs(z))
    values = {"tanh": np.tanh(z), "sigmoid": np.where(z < 0, e, 1) / (1 + e), "exp_negative": e}
    value: Array = values[name]
    return value


def check_error(name: str, x: Array, y: Array) -> None:
    """Within the bound; a result below the smallest normal number may be off by that number."""
    want = exact(name, x)
    off = np.abs(y.astype(want.dtype) - want)
    tiny = np.finfo(x.dtype).tiny
    normal = np.abs(want) >= tiny
    assert np.all(off[~normal] <= tiny), f"{name}: off by {np.max(off[~normal])} near zero"
    ulp = off[normal] / np.spacing(np.abs(want[normal]).astype(x.dtype))
    worst = int(np.argmax(ulp))
    assert ulp[worst] <= BOUND[x.dtype.name], f"{name}({x[normal][worst]!r}): {ulp[worst]:.3f} ulp"


def dense(dtype: str) -> Array:
    """Even grids over the curved range and far around it, and steps through every exponent."""
    info = np.finfo(dtype)
    exponents = np.linspace(info.minexp - info.nmant, info.maxexp - 1e-3, 200_001)
    powers = np.exp2(exponents).astype(dtype)
    grids = [np.linspace(-r, r, 200_001) for r in (1e-3, 1.0, 10.0, 100.0, 800.0)]
    return np.concatenate([*(g.astype(dtype) for g in grids), powers, -powers])


def throughout_float32() -> Array:
    """Every 2053rd float32 there is, of all exponents and both signs, but NaN and infinity."""
    x = np.arange(0, 2**32, 2053, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return x[np.isfinite(x)]


def specials(dtype: str) -> Array:
    """Finite numbers at which implementations go wrong."""
    info = np.finfo(dtype)
    edges = [0.0, info.smallest_subnormal, info.tiny, info.eps, info.max, 1.0]
    edges += [0.5 * k * np.log(2.0) for k in range(1, 260)]  # where range reduction turns
    edges += [9.0, 9.011, 17.0, 18.0, 19.0619, 37.0, 87.33, 88.03, 88.72, 104.0, 708.4, 745.2]
    near = np.array(edges, dtype)
    up, down = np.nextafter(near, dtype_max(dtype)), np.nextafter(near, -dtype_max(dtype))
    positive = np.concatenate([near, up, down])
    return np.concatenate([positive, -positive])


def dtype_max(dtype: str) -> Array:
    return np.array(np.finfo(dtype).max, dtype)


def check(name: str, x: Array) -> None:
    """Error, range and symmetry over finite x."""
    if name == "exp_negative":
        x = -np.abs(x)
    y = _core.activation(name, x)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    check_error(name, x, y)
    low = -1.0 if name == "tanh" else 0.0
    assert np.min(y) >= low
    assert np.max(y) <= 1.0
    if name == "tanh":
        np.testing.assert_array_equal(_core.activation(name, -x), -y)


def check_float32(name: str) -> None:
    for x in (dense("float32"), throughout_float32(), specials("float32")):
        check(name, x)


def check_float64(name: str) -> None:
    for x in (dense("float64"), specials("float64")):
        check(name, x)

# SPDX-License-Identifier: Apache-2.0
"""What the tests share: building a layer by a cell's name, and holding it against reference.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import settings

import rnnkern as rk
from rnnkern import _core, devices

import reference
from reference import Array, State

for profile, examples in (("rnnkern", 12), ("sanitized", 3)):
    settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=True, print_blob=False
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "rnnkern"))

CELLS = list(reference.CELLS)
DTYPES = ["float32", "float64"]
# Norm-wise relative error against the float64 reference, on up to 50 steps.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

CLASSES: dict[str, tuple[type[Any], dict[str, str]]] = {
    "rnn_tanh": (rk.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (rk.RNN, {"nonlinearity": "relu"}),
    "simplified_gru": (rk.SimplifiedGRU, {}),
    "gru_before": (rk.GRU, {"reset": "before"}),
    "gru_after": (rk.GRU, {"reset": "after"}),
    "lstm": (rk.LSTM, {}),
}


def no_gpu(reason: str) -> NoReturn:
    """Skips a test that needs a GPU; fails it where RNNKERN_REQUIRE_GPU says that there is one."""
    if os.environ.get("RNNKERN_REQUIRE_GPU"):
        pytest.fail(f"RNNKERN_REQUIRE_GPU is set: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure goes to bench/gpu's records at once: the end of the run may never come."""
    path = os.environ.get("RNNKERN_RESULTS")
    if path and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        record = {"test": report.nodeid, "detail": report.longreprtext[-2000:]}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After a kernel's crash every call fails: a process of pytest-xdist ends, and is replaced."""
    found: Any = devices.base._ready.get("cuda")
    if type(found) is not devices.Cuda or "PYTEST_XDIST_WORKER" not in os.environ:
        return
    try:
        found.xp.cuda.runtime.deviceSynchronize()
    except found.xp.cuda.runtime.CUDARuntimeError as error:
        sys.stderr.write(f"{item.nodeid}: {error}\n")
        os._exit(3)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Within, calls use up to ``count`` threads, as if there were as many cores, all free."""
    before = _core.process_threads()
    _core.pretend_cores(count)
    _core.set_process_threads(count)
    try:
        yield
    finally:
        _core.pretend_cores(0)
        _core.set_process_threads(before)


@contextmanager
def using_teams(sizes: list[int]) -> Iterator[None]:
    """Within, calls go on with another team wherever they can, of so many threads in turns."""
    with using_threads(max(sizes)):
        _core.pretend_teams(sizes)
        try:
            yield
        finally:
            _core.pretend_teams([])


# A layer of any class: the classes share no base that the tests may count on.
def make(cell: str, *sizes: int, **options: Any) -> Any:
    """A layer with every parameter drawn anew, sizes as the constructors take them.

    Scaled by the number of columns, so that no size drives a unit so far into saturation that its
    float32 derivative is ill-conditioned.
    """
    cls, fixed = CLASSES[cell]
    layer = cls(*sizes, **fixed, **options)
    rng = np.random.default_rng(options.get("seed", 0))
    for p in layer.params.values():
        p[...] = rng.uniform(-1.0, 1.0, p.shape) / (np.sqrt(p.shape[1]) if p.ndim == 2 else 2.0)
    return layer


def as_tuple(state: Any) -> State:
    """A layer's state, ``h`` or ``(h, c)``, as a tuple."""
    return state if isinstance(state, tuple) else (state,)


def as_layer_state(state: State | None) -> Any:
    """A tuple of states as a layer takes them, ``h`` or ``(h, c)``."""
    return state[0] if state is not None and len(state) == 1 else state


def random_state(cell: str, shape: tuple[int, int, int], seed: int = 0) -> State:
    """Random states, float64, ``(h,)`` or ``(h, c)``."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape) for _ in range(reference.CELLS[cell].states))


def cast(state: State, dtype: str) -> State:
    """The same states in another dtype."""
    return tuple(s.astype(dtype) for s in state)


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


def check_against_reference(
    layer: Any,
    cell: str,
    x: Array,
    *,
    state: State | None = None,
    lengths: Array | None = None,
    dy: Array | None = None,
    dstate: State | None = None,
    tolerance: float | None = None,
) -> None:
    """Inference, training forward and every gradient of ``layer`` agree with reference.py."""
    dtype = layer.params["weight_hh_l0"].dtype
    if tolerance is None:
        tolerance = TOLERANCE[dtype.name]
    state = None if state is None else cast(state, dtype.name)
    dstate = None if dstate is None else cast(dstate, dtype.name)
    dy = None if dy is None else dy.astype(dtype)
    oracle = reference.Tape(cell, layer.params, x, state, lengths)

    y, last = layer(x, as_layer_state(state), lengths)
    y_again, last_again, tape = layer.forward(x, as_layer_state(state), lengths)
    for name, got, want, again in [
        ("y", y, oracle.y, y_again),
        *zip(("h_n", "c_n"), as_tuple(last), oracle.state, as_tuple(last_again), strict=False),
    ]:
        assert got.dtype == dtype, f"{name} is {got.dtype}"
        assert_close(name, got, want, tolerance)
        assert_same_bits(f"{name} of inference and of training", got, again)

    # A relu whose input rounds to the other side of zero has another derivative: not an error.
    if cell == "rnn_relu" and np.any((y > 0) != (oracle.y > 0)):
        return
    want_dx, want_dfirst, want_grads = oracle.backward(dy, dstate)
    dx, dfirst, grads = tape.backward(dy, as_layer_state(dstate))
    if want_dx is None:
        assert dx is None
    else:
        assert_close("dx", dx, want_dx, tolerance)
    for name, got, want in zip(("dh_0", "dc_0"), as_tuple(dfirst), want_dfirst, strict=False):
        assert_close(name, got, want, tolerance)
    assert grads.keys() == layer.params.keys()
    for name, want in want_grads.items():
        assert grads[name].dtype == dtype
        assert_close(name, grads[name], want, tolerance)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that can import the tests, with these variables set."""
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def forward_by(
    implementation: str,
    cell: str,
    params: dict[str, Array],
    x: Array,
    state: State | None = None,
    lengths: Array | None = None,
) -> tuple[Array, State]:
    """Run parameters that came from elsewhere through "reference" or through "rnnkern"."""
    if implementation == "reference":
        oracle = reference.Tape(cell, params, x, state, lengths)
        return oracle.y, oracle.state
    endings = reference.suffixes(params)
    both = any(e.endswith("_reverse") for e in endings)
    layer = make(
        cell,
        params["weight_ih_l0"].shape[1],
        params["weight_hh_l0"].shape[1],
        len(endings) // (2 if both else 1),
        bidirectional=both,
        bias="bias_l0" in params,
        dtype=params["weight_ih_l0"].dtype.name,
    )
    assert layer.params.keys() == params.keys()
    for name, p in layer.params.items():
        assert p.shape == params[name].shape
        p[...] = params[name]
    y, last = layer(x, as_layer_state(state), lengths)
    return y, as_tuple(last)


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

# SPDX-License-Identifier: Apache-2.0
"""Keras' layers on our kernels, in processes of their own: Keras' backend is chosen once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("keras") is None, reason="could not import 'keras'"
)

SUITE = Path(__file__).with_name("keras_suite.py")
EVERY = ("lstm_test", "gru_test", "simple_rnn_test", "bidirectional_test")

AGAINST_KERAS = """
import sys

import keras
import numpy as np

import rnnkern.keras as ours

rng = np.random.default_rng(0)
x = rng.standard_normal((3, 6, 5), np.float32)


def same(a, b, tolerance=1e-5):
    for p, q in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        p, q = keras.ops.convert_to_numpy(p), keras.ops.convert_to_numpy(q)
        np.testing.assert_allclose(p, q, rtol=tolerance, atol=tolerance)


loops = 0
run = ours._BACKENDS[keras.backend.backend()]


def counted(*arguments):
    global loops
    loops += 1
    return run(*arguments)


ours._BACKENDS[keras.backend.backend()] = counted
# JAX compiles each shape of each operation: some of the layers, then, and one kind of output.
short = keras.backend.backend() == "jax"
for name, options in (
    ("LSTM", {}),
    ("LSTM", {"go_backwards": True, "use_bias": False}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"use_bias": False}),
    ("SimpleRNN", {"activation": "relu"}),
)[short::2 if short else 1]:
    for sequences in (True,) if short else (False, True):
        options |= {"return_sequences": sequences, "return_state": True}
        theirs = getattr(keras.layers, name)(7, bias_initializer="glorot_uniform", **options)
        mine = getattr(ours, name).from_config(theirs.get_config())
        expected = theirs(x)
        mine.build(x.shape)
        mine.set_weights(theirs.get_weights())
        before = loops
        same(mine(x), expected)
        assert loops == before + 1, (name, options)
        again = getattr(ours, name).from_config(mine.get_config())
        assert type(again) is type(mine)
# What our kernels cannot do is Keras' own loop.
for options in ({"recurrent_activation": "hard_sigmoid"}, {"activation": "relu"})[short:]:
    theirs = keras.layers.LSTM(7, **options)
    mine = ours.LSTM.from_config(theirs.get_config())
    expected, before = theirs(x), loops
    mine.build(x.shape)
    mine.set_weights(theirs.get_weights())
    same(mine(x), expected)
    assert loops == before
if keras.backend.backend() == "jax":
    import jax

    here, layer = jax.default_backend, ours.LSTM(7)
    assert ours._can(layer, x, None, False)
    jax.default_backend = lambda: "gpu"  # where our kernels are not
    assert not ours._can(layer, x, None, False)
    jax.default_backend = here
mask = np.array([[1, 1, 0, 0, 0, 0], [1] * 6, [0] * 6], bool)
theirs, mine = keras.layers.GRU(7), ours.GRU(7)
expected, before = theirs(x, mask=mask), loops
mine.build(x.shape)
mine.set_weights(theirs.get_weights())
same(mine(x, mask=mask), expected)
assert loops == before


def model():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Input((6, 5)),
        keras.layers.Bidirectional(keras.layers.GRU(8, return_sequences=True)),
        keras.layers.LSTM(8),
        keras.layers.Dense(1),
    ]
    made = keras.Sequential(layers)
    made.compile(keras.optimizers.SGD(0.02), "mse")
    return made


target = x.sum(axis=(1, 2))[:, None]
plain, fast = model(), model()
fast.predict(x, verbose=0)  # compiled with Keras' loops, which accelerate undoes
same(ours.accelerate(fast).predict(x, verbose=0), plain.predict(x, verbose=0))
told = [m.fit(x, target, epochs=5, batch_size=3, shuffle=False, verbose=0) for m in (plain, fast)]
same(told[1].history["loss"], told[0].history["loss"], 1e-4)
same(fast.get_weights(), plain.get_weights(), 1e-4)
try:
    ours.accelerate(3)
except TypeError as error:
    assert "must be a layer or model of Keras 3, got <class 'int'>" in str(error)
else:
    raise AssertionError("3 was taken for a model")
print("all as it should be")
"""


def child(backend: str, *arguments: str) -> str:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_numbers_are_those_of_keras(backend: str) -> None:
    assert child(backend, "-c", AGAINST_KERAS) == "all as it should be"


@pytest.mark.parametrize(("backend", "modules"), [("torch", EVERY), ("jax", EVERY[2:3])])
def test_passes_the_tests_of_keras(backend: str, modules: tuple[str, ...]) -> None:
    found = json.loads(child(backend, str(SUITE), *modules))
    assert not found["failed"], "\n".join(found["failed"])
    assert found["run"] >= 5 * len(modules)
    assert found["loops"] >= 8 * len(modules)

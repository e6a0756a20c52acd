# SPDX-License-Identifier: Apache-2.0
"""Calls that are run in pieces (recompute, tbptt): of any options, with resets at any step."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.layers import as_layer_state, as_tuple, random_state
from support.processes import run_python

STEPS, BATCH, INPUTS, HIDDEN = 11, 3, 4, 5

Case = tuple[type[Any], dict[str, Any]]
PAIRS = {
    "activation": ("tanh", "softsign"),
    "recurrent_activation": ("hard_sigmoid", "sigmoid"),
}
OPTIONS: dict[str, Case] = {
    "peepholes": (rk.LSTM, {"peepholes": True}),
    "proj_size": (rk.LSTM, {"proj_size": 3}),
    "coupled": (rk.LSTM, {"coupled": True, "peepholes": True}),
    "bounds": (rk.LSTM, {"clip": 0.6, "cell_clip": 0.4}),
    "by direction": (rk.LSTM, {**PAIRS, "output_activation": ("scaled_tanh", "elu(0.5)")}),
    "projected by direction": (rk.LSTM, {**PAIRS, "proj_size": 3}),
    "gru by direction": (rk.GRU, {**PAIRS, "reset": "after", "clip": 0.6}),
    "mgu": (rk.MGU, {"activation": "softsign"}),
    "rnn": (rk.RNN, {"clip": 0.6}),
    "no product": (rk.MinLSTM, {}),
}
MERGES = ["concat", "sum", "average", "product"]


def made(case: Case, **options: Any) -> Any:
    """A layer of two, float64, with large parameters."""
    cls, own = case
    layer = cls(INPUTS, HIDDEN, 2, dtype="float64", **own, **options)
    random = np.random.default_rng(1)
    for p in layer.params.values():
        p[...] = random.standard_normal(p.shape) / 2
    return layer


def everything(layer: Any, x: Any, state: Any, dstate: Any, **options: Any) -> dict[str, Any]:
    """What both passes give, by name."""
    y, last, tape = layer.forward(x, state, **options)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    gradients = tape.backward(dy, dstate)
    named = {"y": y, "dx": gradients.x, **gradients.params}
    for name, parts in (("last", last), ("first", gradients.state)):
        named |= {f"{name} {k}": part for k, part in enumerate(as_tuple(parts))}
    return named


def states_of(layer: Any, seed: int) -> Any:
    """A random state of the layer."""
    random = np.random.default_rng(seed)
    zeros = as_tuple(layer(np.zeros((1, BATCH, INPUTS)))[1])
    return as_layer_state(tuple(random.standard_normal(part.shape) for part in zeros))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
def test_recompute_of_two_directions_with_options(case: Case, merge: str) -> None:
    layer = made(case, bidirectional=True, merge=merge)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS))
    given = (x, states_of(layer, 3), states_of(layer, 4))
    got, want = everything(layer, *given, recompute=4), everything(layer, *given)
    assert_same_bits("y", got["y"], want["y"])
    for name, array in want.items():
        assert_close(name, got[name], array, 1e-13)


def resets_at(step: int) -> Any:
    """Of one row at a step, of another around it."""
    resets = np.zeros((STEPS, BATCH), bool)
    resets[step, 0] = True
    resets[max(step - 1, 0) : step + 2, 1] = True
    return resets


@pytest.mark.parametrize("way", [{}, {"reverse": True}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("every", [1, 3, 5])
@pytest.mark.parametrize("step", range(STEPS))
def test_recompute_with_a_reset_at_any_step(step: int, every: int, way: dict[str, Any]) -> None:
    layer = made((rk.LSTM, {}), **way)
    random = np.random.default_rng(0)
    x = random.standard_normal((STEPS, BATCH, INPUTS))
    segments = np.cumsum(resets_at(step), axis=0)
    held = random.random((STEPS, BATCH)) < 0.6
    given = (x, states_of(layer, 3), states_of(layer, 4))
    marks: list[dict[str, Any]] = [
        {"resets": resets_at(step)},
        {"segments": segments},
        {"resets": resets_at(step), "mask": held},
        {"resets": resets_at(step), "mask": held, "lengths": [STEPS, 5, 8]},
    ]
    for own in marks:
        got = everything(layer, *given, **own, recompute=every)
        want = everything(layer, *given, **own)
        assert_same_bits("y", got["y"], want["y"])
        for name, array in want.items():
            assert_close(name, got[name], array, 1e-13)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("every", [1, 2, 5, 10])
@pytest.mark.parametrize("step", range(10))
def test_tbptt_of_a_layer_that_runs_back_with_a_reset(step: int, every: int, masked: bool) -> None:
    """As a layer that runs forward over x turned round: pieces end at the same places."""
    layer = made((rk.LSTM, {}), reverse=True)
    twin = made((rk.LSTM, {}))
    for name, p in layer.params.items():
        twin.params[name] = p
    random = np.random.default_rng(0)
    x, resets = random.standard_normal((10, BATCH, INPUTS)), resets_at(step)[:10]
    turned = np.zeros_like(resets)  # a reset lies between two steps
    turned[1:] = resets[:0:-1]
    mask = random.random(resets.shape) < 0.6 if masked else np.ones(resets.shape, bool)
    first = as_layer_state(random_state("lstm", (2, BATCH, HIDDEN)))
    dlast = as_layer_state(random_state("lstm", (2, BATCH, HIDDEN), 1))
    dy = random.standard_normal((10, BATCH, HIDDEN))
    y, last, tape = layer.forward(x, first, resets=resets, mask=mask, tbptt=every)
    want_y, want_last, want_tape = twin.forward(
        x[::-1], first, resets=turned, mask=mask[::-1], tbptt=every
    )
    assert_same_bits("y", y, layer(x, first, resets=resets, mask=mask)[0])
    assert_same_bits("y", y, want_y[::-1])
    got, want = tape.backward(dy, dlast), want_tape.backward(dy[::-1], dlast)
    for mine, theirs in zip((*last, *got.state), (*want_last, *want.state), strict=True):
        assert_close("state", mine, theirs, 1e-13)
    assert_close("dx", got.x, want.x[::-1], 1e-13)
    for name, array in want.params.items():
        assert_close(name, got.params[name], array, 1e-13)


# Of the process's own memory: ru_maxrss begins with the peak of the process that started it.
_SHARED = """
from pathlib import Path
import numpy as np
import rnnkern as rk

def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))

lstm, x = rk.LSTM(8, 512, seed=0), np.ones((64, 1, 8), np.float32)
lstm.forward(x[:2], {options})
size, before = sum(p.nbytes for p in lstm.params.values()), most()
tape = lstm.forward(x, {options})[2]
print((most() - before) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("options", ["tbptt=1", "recompute=1"])
def test_pieces_share_the_weights(options: str) -> None:
    done = run_python(_SHARED.format(options=options))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 8  # of 64 pieces


@pytest.mark.parametrize("options", [{"tbptt": 2}, {"recompute": 2}], ids=str)
def test_pieces_of_tokens_and_weights_that_change_meanwhile(options: dict[str, int]) -> None:
    layer = made((rk.GRU, {"reset": "after"}))
    tokens = np.random.default_rng(0).integers(0, INPUTS, (STEPS, BATCH))
    y, _, tape = layer.forward(tokens, **options)
    before = tape.backward(y).params
    for p in layer.params.values():
        p += 1.0
    for name, array in tape.backward(y).params.items():
        assert_same_bits(name, array, before[name])
    one_hot = layer.forward(np.eye(INPUTS)[tokens], **options)[2].backward(y).params
    again = layer.forward(tokens, **options)[2].backward(y).params
    for name, array in again.items():
        assert_close(name, array, one_hot[name], 1e-12)

# SPDX-License-Identifier: Apache-2.0
"""Arguments that go straight to the kernels, and the same ones where they are converted first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import _core
from rnnkern.devices import LayerSpec

from support.compare import assert_same_bits
from support.layers import CELLS, make

T, B, F, H = 4, 3, 5, 6
LENGTHS = np.array([4, 0, 2])


def strided(array: Any) -> Any:
    """The same values, where C++ leaves them to Python: not contiguous, or a part of a state."""
    if isinstance(array, tuple):
        return [strided(part) for part in array]
    return None if array is None else np.repeat(array, 2, axis=-1)[..., ::2]


def arguments(layer: Any, kind: str) -> tuple[Any, Any, Any]:
    """A call's x, state and lengths, of some kind."""
    random = np.random.default_rng(0)
    x: Any = random.standard_normal((T, B, F)).astype(layer.dtype)
    states = layer.num_layers * layer.num_directions
    h = random.standard_normal((states, B, H)).astype(layer.dtype)
    if kind == "tokens":
        x = random.integers(0, F, (T, B))
    if kind == "unbatched":
        x, h = x[:, 0].copy(), h[:, 0].copy()
    if kind == "unbatched tokens":
        x, h = np.arange(T), h[:, 0].copy()
    if layer.batch_first and not kind.startswith("unbatched"):
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    has_c = layer._spec.facts.states == ("h", "c")
    state: Any = None if kind == "no state" else (h, None if kind == "half a state" else -h)
    if state is not None and not has_c:
        state = h
    return x, state, LENGTHS if kind == "lengths" else None


KINDS = [
    *("no state", "a state", "half a state", "lengths"),
    *("tokens", "unbatched", "unbatched tokens"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_both_give_the_same_bits(cell: str, kind: str) -> None:
    for options in ({}, {"bidirectional": True, "batch_first": True, "dtype": "float64"}):
        layer = make(cell, F, H, 2, **options)
        x, state, lengths = arguments(layer, kind)
        kernels = layer._network.kernels
        assert kernels.direct(x, state, lengths, False) is not None
        turned = strided(x), strided(state), lengths
        assert kernels.direct(*turned, False) is None

        y, last = layer(x, state, lengths)
        want_y, want_last = layer(*turned)
        frozen_y, frozen_last = layer.freeze()(x, state, lengths)
        taped_y, taped_last, tape = layer.forward(x, state, lengths)
        turned_y, _, turned_tape = layer.forward(*turned)
        for got in (want_y, frozen_y, taped_y, turned_y):
            assert_same_bits("y", got, y)
        for got in (want_last, frozen_last, taped_last):
            assert_same_bits("the last state", np.stack(got), np.stack(last))

        dy, dstate = np.cos(y), tuple(np.cos(last)) if isinstance(last, tuple) else np.cos(last)
        given = tape._given.x, tape._y
        assert tape._kept.direct(*given, dy, dstate, tape._given.unbatched) is not None
        grads, want = tape.backward(dy, dstate), turned_tape.backward(strided(dy), strided(dstate))
        assert (grads.x is None) == (want.x is None) == (x.dtype != layer.dtype)
        if grads.x is not None:
            assert_same_bits("dx", grads.x, want.x)
        assert_same_bits("dstate", np.stack(grads.state), np.stack(want.state))
        assert [*grads.params] == [*want.params] == [*layer.params]
        for name, gradient in want.params.items():
            assert_same_bits(name, grads.params[name], gradient)


def test_what_a_caller_gives_is_not_written() -> None:
    layer = make("lstm", F, H)
    x, state, _ = arguments(layer, "a state")
    before = x.copy(), [part.copy() for part in state]
    y, last, tape = layer.forward(x, state)
    kept = y.copy(), [part.copy() for part in last]
    tape.backward(y, last)
    for given, want in ((x, before[0]), (y, kept[0])):
        assert_same_bits("x or y", given, want)
    for parts, wanted in ((state, before[1]), (last, kept[1])):
        for given, want in zip(parts, wanted, strict=True):
            assert_same_bits("a state", given, want)


def test_lengths_may_change_after_the_call() -> None:
    layer = make("rnn_tanh", F, H)
    x, _, lengths = arguments(layer, "lengths")
    own = lengths.copy()
    y, _, tape = layer.forward(x, None, own)
    (gates,) = layer.forward(x, None, lengths)[2].gates()
    own[...] = 0
    for name, values in tape.gates()[0].items():
        assert_same_bits(name, values, gates[name])
    assert np.any(tape.backward(y).x)


def test_what_is_left_to_python() -> None:
    w_ih, w_hh, bias = (np.ones(s, np.float32) for s in ((4 * H, F), (4 * H, H), (4 * H,)))
    network = _core.Network(LayerSpec("lstm", F, H), [(w_ih, w_hh, bias, None)])
    x, h = np.ones((T, B, F), np.float32), np.ones((1, B, H), np.float32)

    class Own(np.ndarray):
        pass

    assert network.direct(x, (h, h), LENGTHS, False) is not None
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    wrong: list[Any] = [
        *(
            x.tolist(),
            x.astype(np.float64),
            x.view(Own),
            x[:, ::-1],
            x[..., :-1],
            x[None],
            unaligned,
        ),
        *(
            x.astype(x.dtype.newbyteorder()),
            x[:0],
            x[:, :0],
            np.zeros((T, B), np.int32),
            None,
            x[0, 0],
        ),
    ]
    for given in wrong:
        assert network.direct(given, None, None, False) is None
    states: list[Any] = [
        *(h, [h, h], (h,), (h, h, h), (h, h.tolist()), (h[0], h), (h.astype(np.float64), h)),
        *((h[:, :, ::-1], h), (h, h[:, :1]), "hc"),
    ]
    for state in states:
        assert network.direct(x, state, None, False) is None
    for lengths in ([4, 0, 2], LENGTHS.astype(np.int32), LENGTHS[:2], LENGTHS + 1, LENGTHS - 1, 3):
        assert network.direct(x, None, lengths, False) is None
    y, _, kept = network.direct(x, None, None, True)
    for dy, dstate in (
        (y[:-1], None),
        (y.tolist(), None),
        (y[..., ::-1], None),
        (y, h),
        (y, [h, h]),
    ):
        assert kept.direct(x, y, dy, dstate, False) is None
    with pytest.raises(ValueError, match="x must hold tokens"):
        network.direct(np.full((T, B), F), None, None, False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resets": None}, "resets or mask must be given, got None for both"),
        ({"resets": None, "steps": 2**62, "batch": 4}, "resets or mask must be given"),
        ({"lengths": LENGTHS + 1}, r"lengths must lie in 0\.\.4, got 5 for row 0"),
        ({"lengths": LENGTHS - 1}, r"lengths must lie in 0\.\.4, got -1 for row 1"),
        (
            {"steps": T + 1},
            r"resets must be a bool array of shape \(5, 3\), got bool of shape \(4,",
        ),
        ({"batch": 0}, "steps and batch must be at least 1"),
    ],
)
def test_stretches_of_what_cannot_be(wrong: dict[str, Any], message: str) -> None:
    given = {"steps": T, "batch": B, "lengths": LENGTHS, "resets": np.zeros((T, B), bool)}
    with pytest.raises(ValueError, match=message):
        _core.stretches(**{**given, "mask": None, "states_anew": False, **wrong})

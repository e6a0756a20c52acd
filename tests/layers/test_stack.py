# SPDX-License-Identifier: Apache-2.0
"""Layers of different kinds on one another behave as one layer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.cells import CELLS

from support.compare import assert_close, assert_same_bits
from support.differences import differences
from support.layers import as_tuple, make
from support.marks import live_steps

T, B, F = 6, 4, 3
LENGTHS = np.array([4, 0, 6, 1])


def mixed(dtype: str = "float32", **options: Any) -> rk.Stack:
    """Three kinds, two of them in both directions, one of two layers."""
    layers = [
        make("gru_before", F, 4, bidirectional=True, dtype=dtype),
        make("rnn_tanh", 8, 4, 2, bidirectional=True, dtype=dtype),
        make("lstm", 8, 8, dtype=dtype),
    ]
    return rk.Stack(layers, **options)


def onward(**options: Any) -> rk.Stack:
    """One of every cell of the registry, in one direction."""
    cells = list(CELLS.values())
    sizes = [F, *(5 for _ in cells)]
    pairs = zip(cells, sizes[:-1], sizes[1:], strict=True)
    return rk.Stack([c.build(i, o, seed=k) for k, (c, i, o) in enumerate(pairs)], **options)


def flat(state: Any) -> list[Any]:
    """All arrays of a stack's state."""
    return [part for own in state for part in as_tuple(own)]


def random_states(stack: rk.Stack, batch: int, seed: int = 0) -> Any:
    """One for each layer."""
    rng = np.random.default_rng(seed)
    _, zero = stack(np.zeros((1, batch, F), stack.dtype))

    def drawn(part: Any) -> Any:
        return rng.standard_normal(part.shape).astype(part.dtype)

    return [tuple(map(drawn, own)) if isinstance(own, tuple) else drawn(own) for own in zero]


def by_hand(stack: rk.Stack, x: Any, state: Any, lengths: Any) -> Any:
    """The layers called one after another."""
    live = live_steps(len(x), [len(x)] if lengths is None else lengths)
    last = []
    for layer, own, around in zip(stack.layers, state, stack.residual, strict=True):
        y, after = layer(x, own, lengths)
        x = y + live[..., None] * x if around else y
        last.append(after)
    return x, last


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("residual", [False, True, [False, True, False]])
def test_it_is_its_layers_one_after_another(residual: Any, lengths: Any) -> None:
    stack = mixed(residual=residual)
    x = np.random.default_rng(0).standard_normal((T, B, F)).astype(np.float32)
    state = random_states(stack, B)
    want, want_last = by_hand(stack, x, state, lengths)
    y, last = stack(x, state, lengths)
    trained, trained_last, _ = stack.forward(x, state, lengths)
    frozen, frozen_last = stack.freeze()(x, state, lengths)
    assert y.shape == (T, B, stack.output_size)
    for got in (y, trained, frozen):
        assert_same_bits("y", got, want)
    for got_last in (last, trained_last, frozen_last):
        for got, wanted in zip(flat(got_last), flat(want_last), strict=True):
            assert_same_bits("state", got, wanted)


def test_a_stack_of_equal_layers_is_the_stacked_layer() -> None:
    torch = pytest.importorskip("torch")
    stack = rk.Stack([rk.LSTM(F, 5, bidirectional=True), rk.LSTM(10, 5, bidirectional=True)])
    theirs = torch.nn.LSTM(F, 5, 2, bidirectional=True)
    with torch.no_grad():
        for name, p in stack.params.items():
            k, own = name.split(".")
            own = own.replace("_l0", f"_l{k}")
            getattr(theirs, own.replace("bias_", "bias_ih_")).copy_(torch.tensor(p))
            if own.startswith("bias"):
                getattr(theirs, own.replace("bias_", "bias_hh_")).zero_()
    x = np.random.default_rng(0).standard_normal((T, B, F)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    want, _ = theirs(leaf)
    y, _, tape = stack.forward(x)
    assert_close("y", y, want.detach().numpy(), 1e-5)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    want.backward(torch.tensor(dy))
    dx, _, grads = tape.backward(dy)
    assert_close("dx", dx, leaf.grad.numpy(), 1e-5)
    assert list(grads) == list(stack.params)
    for name, got in grads.items():
        k, own = name.split(".")
        own = own.replace("_l0", f"_l{k}").replace("bias_", "bias_ih_")
        assert_close(name, got, getattr(theirs, own).grad.numpy(), 1e-5)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_gradients_agree_with_finite_differences(
    residual: bool, batch_first: bool, lengths: Any
) -> None:
    options: dict[str, Any] = {"dtype": "float64", "batch_first": batch_first, "seed": 1}
    layers = [
        rk.GRU(4, 2, bidirectional=True, **options),
        rk.LSTM(4, 4, **options),
        rk.RNN(4, 2, bidirectional=True, **options),
    ]
    around = [True, False, True] if residual else False
    stack = rk.Stack(layers, residual=around, dropout=0.3)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, 4) if batch_first else (T, B, 4))
    state = random_states_of(stack, rng)
    y, _, tape = stack.forward(x, state, lengths, dropout_key=3)
    dy, dlast = rng.standard_normal(y.shape), rng.standard_normal((B, 4))
    dstate = random_states_of(stack, rng)
    kept_dy = dy.copy()
    dx, dfirst, grads = tape.backward(dy, dstate, dlast=dlast)
    assert_same_bits("dy", dy, kept_dy)

    def loss() -> float:
        y, last, _ = stack.forward(x, state, lengths, dropout_key=3)
        total = np.sum(dy * y) + np.sum(dlast * stack.last_output(y, last, lengths))
        pairs = zip(flat(last), flat(dstate), strict=True)
        return float(total + sum(np.sum(a * d) for a, d in pairs))

    arrays = [(x, dx), *zip(flat(state), flat(dfirst), strict=True)]
    for array, gradient in [*arrays, *((stack.params[n], grads[n]) for n in stack.params)]:
        assert gradient.shape == array.shape
        every = list(np.ndindex(array.shape))
        places = [every[i] for i in rng.choice(len(every), 8)]
        want = differences(loss, array, places=places)
        for place in places:
            assert gradient[place] == pytest.approx(want[place], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("batch_first", [False, True])
def test_nothing_goes_round_past_a_rows_end(batch_first: bool) -> None:
    layers = [rk.GRU(4, 4, batch_first=batch_first, seed=k) for k in range(2)]
    stack = rk.Stack(layers, residual=[True, True])
    x = np.random.default_rng(0).standard_normal((T, B, 4)).astype(np.float32)
    past = ~live_steps(T, LENGTHS)
    dy = np.where(past[..., None], np.nan, x)
    if batch_first:
        x, dy, past = x.swapaxes(0, 1), dy.swapaxes(0, 1), past.T
    y, _, tape = stack.forward(x, None, LENGTHS)
    dx, _, grads = tape.backward(dy)
    for array in (y, dx, stack(x, None, LENGTHS)[0]):
        assert not array[past].any()
        assert array[~past].all()
    assert all(np.isfinite(g).all() for g in grads.values())


def test_a_tape_has_its_own_lengths() -> None:
    stack, lengths = (
        rk.Stack([rk.GRU(4, 4, seed=k) for k in range(2)], residual=True),
        LENGTHS.copy(),
    )
    x = np.random.default_rng(0).standard_normal((T, B, 4)).astype(np.float32)
    y, _, tape = stack.forward(x, None, lengths)
    dlast = np.ones((B, 4), np.float32)
    dx, _, grads = tape.backward(y, dlast=dlast)
    lengths[:] = T
    dx_after, _, after = tape.backward(y, dlast=dlast)
    assert np.array_equal(dx, dx_after)
    assert all(np.array_equal(gradient, after[name]) for name, gradient in grads.items())


def random_states_of(stack: rk.Stack, rng: np.random.Generator) -> Any:
    """One for each layer, of a batch of B."""
    states: list[Any] = []
    for layer in stack.layers:
        h, c = rng.standard_normal((2, layer.num_directions, B, layer.hidden_size))
        states.append((h, c) if isinstance(layer, rk.LSTM) else h)
    return states


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("residual", [False, True])
def test_the_last_output_is_each_directions_own(residual: bool, lengths: Any) -> None:
    rng = np.random.default_rng(0)
    bottom = make("gru_before", F, 4, bidirectional=True)
    stack = rk.Stack([bottom, make("lstm", 8, 4, bidirectional=True)], residual=residual)
    x = rng.standard_normal((T, B, F)).astype(np.float32)
    y, state = stack(x, random_states(stack, B), lengths)
    last = stack.last_output(y, state, lengths)
    for b, length in enumerate([T] * B if lengths is None else lengths):
        if length:
            want = np.concatenate([y[length - 1, b, :4], y[0, b, 4:]])
        else:
            want = np.concatenate(list(state[1][0][:, b]))
        assert_same_bits("last", last[b], want)


def test_tokens_unbatched_and_empty_input() -> None:
    stack = rk.Stack([rk.RNN(9, 4, seed=1), rk.LSTM(4, 4, seed=2)], residual=True)
    tokens = np.random.default_rng(0).integers(0, 9, (T, B))
    y, _, tape = stack.forward(tokens, None, LENGTHS)
    one_hot = np.eye(9, dtype=np.float32)[tokens]
    assert_close("y", y, stack(one_hot, None, LENGTHS)[0], 1e-6)
    dx, _, _ = tape.backward(y)
    assert dx is None
    alone, state = stack(one_hot[:, 0])
    assert_close("y of a row", alone, stack(one_hot)[0][:, 0], 1e-6)
    assert flat(state)[0].shape == (1, 4)
    last = stack.last_output(alone, state)
    assert_same_bits("last", last, alone[-1])
    for shape in ((0, B, 9), (T, 0, 9)):
        y, state, tape = stack.forward(np.zeros(shape, np.float32))
        assert y.shape == (*shape[:2], 4)
        assert stack.last_output(y, state).shape == (shape[1], 4)
        assert tape.backward(y)[0].shape == shape


def test_dropout_follows_from_its_key_and_differs_by_layer() -> None:
    stack = rk.Stack(
        [rk.GRU(F, 8, seed=k) if k == 0 else rk.GRU(8, 8, seed=k) for k in range(3)], dropout=0.5
    )
    x = np.ones((T, B, F), np.float32)
    first, again, other = (stack.forward(x, dropout_key=key)[0] for key in (1, 1, 2))
    assert_same_bits("y", first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, stack(x)[0])
    masks = stack.forward(x, dropout_key=1)[2]._masks
    assert masks[0] is None
    assert masks[1] is not None
    assert masks[2] is not None
    assert not np.array_equal(masks[1], masks[2])
    assert {*np.unique(masks[1])} == {0.0, 2.0}


def test_layers_of_a_stack_have_other_masks_between_their_own_layers() -> None:
    layers = [rk.RNN(8, 8, 2, nonlinearity="relu", dropout=0.5, seed=1) for _ in range(2)]
    for layer in layers:  # which hands on what it gets
        for name, p in layer.params.items():
            p[...] = np.eye(8) if name.startswith("weight_ih") else 0.0
    y, _, _ = rk.Stack(layers).forward(np.ones((50, 40, 8), np.float32), dropout_key=1)
    assert abs(np.mean(y != 0) - 0.25) < 0.02  # with the same mask twice it would be half of them


def test_out() -> None:
    for residual in (False, True):
        stack = mixed(residual=residual)
        x = np.random.default_rng(0).standard_normal((T, B, F)).astype(np.float32)
        want, out = stack(x)[0], np.full((T, B, 8), np.nan, np.float32)
        assert stack(x, out=out)[0] is out
        assert_same_bits("y", out, want)
        out[...] = np.nan
        y, _, tape = stack.forward(x, out=out)
        assert y is out
        assert_same_bits("y", out, want)
        assert_same_bits("dx", tape.backward(y)[0], stack.forward(x)[2].backward(y)[0])
        with pytest.raises(ValueError, match=r"out must have shape \(6, 4, 8\), got \(6, 4, 7\)"):
            stack(x, out=np.zeros((T, B, 7), np.float32))
        with pytest.raises(TypeError, match="out must be a NumPy array"):
            stack(x, out=[1.0])  # type: ignore[arg-type]
    square = rk.Stack([rk.RNN(F, F), rk.RNN(F, F)], residual=True)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        square(x, out=x)


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
def test_a_stream_gives_the_same_bits(residual: bool) -> None:
    stack = onward(residual=residual)
    x = np.random.default_rng(0).standard_normal((T, B, F)).astype(np.float32)
    want, want_last = stack(x)
    stream = stack.stream(B)
    got = np.stack([stream.step(x_t) for x_t in x[:2]])
    assert_close("y", np.concatenate([got, stream.block(x[2:])]), want, 1e-6)
    for state, wanted in zip(flat(stream.state), flat(want_last), strict=True):
        assert_close("state", state, wanted, 1e-6)
    stream.reset()
    out = np.zeros((B, 5), np.float32)
    assert stream.step(x[0], out) is out
    assert_same_bits("out", out, got[0])
    whole = np.zeros((T - 1, B, 5), np.float32)
    assert stream.block(x[1:], whole) is whole
    assert_close("y", whole, want[1:], 1e-6)


def test_a_residual_stream_whose_out_is_its_input() -> None:
    stack = rk.Stack([rk.RNN(F, F, seed=1)], residual=[True])
    x = np.random.default_rng(0).standard_normal((B, F)).astype(np.float32)
    want = stack.stream(B).step(x)
    stack.stream(B).step(x, x)
    assert_same_bits("y", x, want)


@pytest.mark.parametrize("residual", [False, True])
def test_rows_of_a_stream_idle_come_and_go(residual: bool) -> None:
    around = [residual] * 2
    stack = rk.Stack([rk.GRU(4, 4, seed=1), rk.LSTM(4, 4, seed=2)], residual=around)
    x = np.random.default_rng(0).standard_normal((4, 3, 4)).astype(np.float32)
    alone = [stack.stream(1) for _ in range(3)]
    stream = stack.stream(3)
    mask = np.array([True, False, True])
    y = stream.step(x[0], mask=mask)
    for b in (0, 2):
        assert_same_bits("y", y[b : b + 1], alone[b].step(x[0, b : b + 1]))
    assert not y[1].any()
    kept = stream.get_rows([2])
    stream.remove_rows([0])
    assert stream.batch == 2
    assert stream.add_rows(1, kept).tolist() == [2]
    y = stream.step(x[1])
    assert_same_bits("y of a copied row", y[2:], stack_step(stack, kept, x[1, 2:]))
    stream.set_rows([0], None)
    stream.reset([1])
    for state in flat(stream.get_rows([0, 1])):
        assert not state.any()
    with pytest.raises(TypeError, match=r"state must be the pair \(h, c\)"):
        stream.set_rows([2], (np.ones((1, 1, 4), np.float32), np.ones((1, 1, 4), np.float32)))
    assert_same_bits("state", flat(stream.get_rows([2]))[0][0], y_state(stream, 2))
    with pytest.raises(ValueError, match=r"state must be a list or tuple .* 2 layers, got 1"):
        stream.add_rows(1, [None])
    assert stream.batch == 3


def stack_step(stack: rk.Stack, state: Any, x: Any) -> Any:
    """A step of a stream that begins there."""
    stream = stack.stream(len(x))
    stream.state = state
    return stream.step(x)


def y_state(stream: Any, row: int) -> Any:
    """h of the first layer, of a row."""
    return stream.state[0][0][row : row + 1]


def test_a_step_that_fails_above_leaves_the_states_below(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = onward().stream(B)
    x = np.ones((B, F), np.float32)
    stream.step(x)
    before = stream.state

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream._streams[-1], "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.step(x)
    for got, want in zip(flat(stream.state), flat(before), strict=True):
        assert_same_bits("state", got, want)


def test_a_stream_takes_present_weights_when_asked() -> None:
    stack = onward()
    stream = stack.stream(B)
    x = np.ones((B, F), np.float32)
    before = stream.step(x)
    for p in stack.params.values():
        p += 0.1
    stream.reset()
    assert_same_bits("y", stream.step(x), before)
    stream.refresh()
    stream.reset()
    assert_close("y", stream.step(x), stack(x[None])[0][0], 1e-6)


# -- one layer everywhere -------------------------------------------------------------------------


def test_it_learns_as_one_layer() -> None:
    stack, head = onward(residual=True), rk.Linear(5, 1, seed=0)
    model = {"stack": stack, "head": head}
    optimizer = rk.Adam(model, 1e-2)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, 32, F)).astype(np.float32)
    target = x.sum(axis=(0, 2))[:, None]
    losses = []
    for _ in range(60):
        y, state, tape = stack.forward(x)
        last = stack.last_output(y, state)
        guess, head_tape = head.forward(last)
        losses.append(float(np.mean((guess - target) ** 2)))
        of_head = head_tape.backward(2 * (guess - target) / len(target))
        grads = {"stack": tape.backward(dlast=of_head.x), "head": of_head}
        rk.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
    assert losses[-1] < 0.3 * losses[0]


def test_params_are_the_layers_own() -> None:
    stack = mixed()
    assert stack.params["1.weight_hh_l1_reverse"] is stack.layers[1].params["weight_hh_l1_reverse"]
    values = {name: array + 1 for name, array in stack.params.items()}
    stack.params.update(values)
    assert stack.layers[0].params == {
        name.removeprefix("0."): a for name, a in values.items() if name[0] == "0"
    }


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies(copied: Callable[[Any], Any]) -> None:
    stack = mixed(residual=[False, True, False])
    x = np.ones((T, B, F), np.float32)
    want = stack(x)[0]
    for twin in (copied(stack), copied(stack.freeze())):
        assert_same_bits("y", twin(x)[0], want)
    twin = copied(stack)
    twin.params["0.weight_ih_l0"] += 1.0
    assert not np.array_equal(twin(x)[0], want)
    assert_same_bits("y", stack(x)[0], want)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    stack = mixed(residual=[False, True, False], dropout=0.1)
    rk.save(tmp_path / "stack", {"stack": stack, "head": rk.Linear(8, 2)})
    again = rk.load(tmp_path / "stack")["stack"]
    assert type(again) is rk.Stack
    assert repr(again) == repr(stack)
    assert again.params == stack.params
    x = np.ones((T, B, F), np.float32)
    assert_same_bits("y", again(x)[0], stack(x)[0])


def test_a_repr_builds_an_equal_one() -> None:
    stack = rk.Stack([rk.GRU(3, 4, seed=1), rk.LSTM(4, 4, seed=2)], residual=True, dropout=0.25)
    assert repr(stack) == (
        "Stack([GRU(3, 4, seed=1), LSTM(4, 4, seed=2)], residual=[False, True], dropout=0.25)"
    )
    again = eval(repr(stack), vars(rk).copy())
    assert again.params == stack.params


@pytest.mark.parametrize("readout", ["all", "last", "mean", "max"])
def test_a_model_of_a_stack(readout: str, tmp_path: Path) -> None:
    stack = onward(residual=True)
    model = rk.Model(
        stack, rk.Linear(5, 2, seed=0), embedding=rk.Embedding(7, F, seed=0), readout=readout
    )
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, (T, B))
    targets = rng.integers(0, 2, (T, B) if readout == "all" else B)
    loss, grads = model.loss_and_grads(x, targets, LENGTHS)
    p, name = model.params["recurrent.0.weight_ih_l0"], "recurrent.0.weight_ih_l0"
    place = np.unravel_index(np.abs(grads.params[name]).argmax(), p.shape)
    kept, losses = p[place], []
    for shift in (1e-2, -1e-2):
        p[place] = kept + shift
        losses.append(model.evaluate(x, targets, LENGTHS))
    p[place] = kept
    assert grads.params[name][place] == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=1e-2)
    rk.save(tmp_path / "model", model)
    assert rk.load(tmp_path / "model").evaluate(x, targets, LENGTHS) == pytest.approx(loss)
    if readout in ("all", "last"):
        stream = model.stream(B)
        got = np.stack([stream.step(x_t) for x_t in x])
        want = model.predict(x)
        assert_close("outputs", got if readout == "all" else got[-1], want, 1e-5)


def test_gates_and_state_gradients_are_of_all_layers() -> None:
    stack = mixed()
    _, _, tape = stack.forward(np.ones((T, B, F), np.float32), None, LENGTHS)
    gates = tape.gates()
    assert [list(g) for g in gates] == [
        list(layer.gates) for layer in stack.layers for _ in range(layer.num_layers)
    ]
    steps = tape.backward(np.ones((T, B, 8), np.float32), state_gradients=True).steps
    assert steps is not None
    assert [own.c is None for own in steps] == [True, True, True, False]
    assert len(stack.plan(T, B)) == 3

# SPDX-License-Identifier: Apache-2.0
"""Rows that begin anew, packed sequences and masks: against loops of PyTorch and calls apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.differences import check_slope, slope, weighted
from support.layers import CELLS, CLASSES, as_layer_state, as_tuple, make, random_state
from support.marks import live_steps
from support.threads import check_same_bits

STEPS, BATCH, INPUTS, HIDDEN = 13, 4, 3, 5
LENGTHS = [STEPS, 0, 7, 12]
MODULES = {"rnn_tanh": "RNN", "gru_after": "GRU", "lstm": "LSTM"}


class Case:
    """Random arguments, with resets, a mask and lengths as they are asked for."""

    def __init__(self, seed: int = 0, *, often: float = 0.3, features: int = INPUTS) -> None:
        self.random = np.random.default_rng(seed)
        self.x = self.normal(STEPS, BATCH, features)
        self.resets = self.random.random((STEPS, BATCH)) < often
        self.mask = self.random.random((STEPS, BATCH)) < 0.7

    def normal(self, *shape: int) -> Any:
        return self.random.standard_normal(shape)


def arguments(case: Case, *names: str) -> dict[str, Any]:
    given = {"resets": case.resets, "mask": case.mask, "lengths": LENGTHS}
    return {name: given[name] for name in names}


MARKS = [("resets",), ("mask",), ("resets", "mask"), ("resets", "mask", "lengths")]


def by_steps(module: Any, x: Any, first: Any, fresh: Any, given: dict[str, Any]) -> Any:
    """TorchRL's way, with PyTorch's module: a step at a time, the state set anew before it."""
    import torch

    state, ys = first, []

    def chosen(rows: Any, there: Any, elsewhere: Any) -> Any:
        return torch.where(torch.from_numpy(rows)[:, None], there, elsewhere)

    for t in range(STEPS):
        within = t < np.array(given.get("lengths", [STEPS] * BATCH))
        if "resets" in given:
            rows = given["resets"][t] & within
            state = tuple(chosen(rows, f, s) for f, s in zip(fresh, state, strict=True))
        own = as_layer_state(state)
        y, after = module(x[t : t + 1], own)
        live = within & given["mask"][t] if "mask" in given else within
        ys.append(chosen(live, y[0], torch.zeros_like(y[0])))
        state = tuple(chosen(live, a, s) for a, s in zip(as_tuple(after), state, strict=True))
    return torch.stack(ys), state


@pytest.mark.parametrize("reset_to", ["zero", "initial", "state"])
@pytest.mark.parametrize("names", MARKS, ids="+".join)
@pytest.mark.parametrize("cell", MODULES)
def test_rows_begin_anew_as_in_a_loop_over_steps(
    cell: str, names: tuple[str, ...], reset_to: str
) -> None:
    torch = pytest.importorskip("torch")
    case = Case()
    layer = make(cell, INPUTS, HIDDEN, 2, dtype="float64")
    module = getattr(torch.nn, MODULES[cell])(INPUTS, HIDDEN, 2, dtype=torch.float64)
    module.load_state_dict(layer.to_torch())
    first, anew = (random_state(cell, (2, BATCH, HIDDEN), seed) for seed in (0, 2))
    given = arguments(case, *names)
    own: Any = as_layer_state(anew) if reset_to == "state" else reset_to
    y, last, tape = layer.forward(case.x, as_layer_state(first), **given, reset_to=own)
    tensors = [torch.from_numpy(a).requires_grad_() for a in (case.x, *first)]
    zeros = tuple(torch.zeros_like(s) for s in tensors[1:])
    states = tuple(torch.from_numpy(a).requires_grad_() for a in anew)
    fresh = {"zero": zeros, "initial": tuple(tensors[1:]), "state": states}[reset_to]
    want_y, want_last = by_steps(module, tensors[0], tuple(tensors[1:]), fresh, given)
    assert_close("y", y, want_y.detach().numpy(), 1e-12)
    for mine, theirs in zip(as_tuple(last), want_last, strict=True):
        assert_close("last", mine, theirs.detach().numpy(), 1e-12)
    dy, dlast = case.normal(*y.shape), random_state(cell, first[0].shape, 1)
    loss = (want_y * torch.from_numpy(dy)).sum()
    for theirs, d in zip(want_last, dlast, strict=True):
        loss = loss + (theirs * torch.from_numpy(d)).sum()
    loss.backward()
    gradients = tape.backward(dy, as_layer_state(dlast))
    for mine, tensor in zip((gradients.x, *as_tuple(gradients.state)), tensors, strict=True):
        assert_close("gradient", mine, tensor.grad.numpy(), 1e-12)
    assert (gradients.reset_to is not None) == (reset_to == "state")
    for mine, tensor in zip(as_tuple(gradients.reset_to), states, strict=False):
        if reset_to == "state":
            reached = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            assert_close("reset_to", mine, reached.numpy(), 1e-12)
    got = make(cell, INPUTS, HIDDEN, 2, dtype="float64")
    for name, array in gradients.params.items():
        got.params[name] = array
    theirs = {name: p.grad.numpy() for name, p in module.named_parameters()}
    for name, array in got.to_torch(arrays=True).items():
        if "bias_hh" not in name:
            assert_close(name, array, theirs[name], 1e-11)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_by_finite_differences(cell: str, bidirectional: bool) -> None:
    case, directions = Case(3), 2 if bidirectional else 1
    given = {**arguments(case, "resets", "mask", "lengths"), "reset_to": "initial"}
    layer = make(cell, INPUTS, HIDDEN, 2, bidirectional=bidirectional, dtype="float64")
    first = random_state(cell, (2 * directions, BATCH, HIDDEN))
    y, _, tape = layer.forward(case.x, as_layer_state(first), **given)
    dy, dlast = case.normal(*y.shape), random_state(cell, first[0].shape, 1)
    gradients = tape.backward(dy, as_layer_state(dlast))

    def loss() -> float:
        y, last = layer(case.x, as_layer_state(first), **given)
        return weighted((y, *as_tuple(last)), (dy, *dlast))

    claimed = {n: (p, gradients.params[n]) for n, p in layer.params.items()}
    claimed |= dict(zip("hc", zip(first, as_tuple(gradients.state), strict=True), strict=False))
    check_slope(loss, claimed | {"x": (case.x, gradients.x)})


@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"compute": "bfloat16"}, {"batch_first": True}],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_sequences_are_calls_apart(cell: str, options: dict[str, Any]) -> None:
    sizes = [[4, 1, 6], [11], [5, 6], [2, 2, 2, 2, 2]]  # of the rows' sequences, the last not full
    layer = make(cell, INPUTS, 19, 2, **options)
    case = Case()
    x = case.x[:11].astype(np.float32)
    ids = np.zeros((11, BATCH), np.int64)
    for b, row in enumerate(sizes):
        ids[: sum(row), b] = np.repeat(np.arange(len(row)), row)
    given = {"segments": ids, "lengths": [sum(row) for row in sizes]}
    dy = case.normal(11, BATCH, layer.output_size).astype(np.float32)

    def turned(array: Any) -> Any:
        return array.swapaxes(0, 1) if layer.batch_first else array

    packed = {**given, "segments": turned(ids)}
    states = random_state(cell, (layer._spec.states, BATCH, 19))
    first = tuple(s.astype(np.float32) for s in states)
    y, last, tape = layer.forward(turned(x), as_layer_state(first), **packed)
    dx, dfirst, _ = tape.backward(turned(dy))
    frozen, _ = layer.freeze()(turned(x), as_layer_state(first), **packed)
    assert_same_bits("frozen", frozen, y)
    back = np.arange(layer._spec.states) % layer.num_directions == 1  # of the second direction
    for b, row in enumerate(sizes):
        for k, (begin, size) in enumerate(zip(np.cumsum([0, *row]), row, strict=False)):
            part = (slice(begin, begin + size), slice(b, b + 1))
            ends = np.where(back, k == len(row) - 1, k == 0)[:, None, None]
            own_first = tuple(np.where(ends, s[:, b : b + 1], np.float32(0)) for s in first)
            own_y, own_last, own_tape = layer.forward(turned(x[part]), as_layer_state(own_first))
            own = own_tape.backward(turned(dy[part]))
            assert_same_bits("y", turned(y)[part], turned(own_y))
            assert_same_bits("dx", turned(dx)[part], turned(own.x))
            leaves = np.where(back, k == 0, k == len(row) - 1)
            for mine, theirs in zip(as_tuple(last), as_tuple(own_last), strict=True):
                assert_same_bits("last", mine[leaves, b], theirs[leaves, 0])
            for mine, theirs in zip(as_tuple(dfirst), as_tuple(own.state), strict=True):
                ways = ends[:, 0, 0]  # of equal sums one may be -0
                np.testing.assert_array_equal(mine[ways, b], theirs[ways, 0])


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_on_the_left_is_a_shorter_call(bidirectional: bool, tokens: bool) -> None:
    case, padding = Case(), [0, 3, STEPS, 12]
    layer = make("gru_before", INPUTS, 9, 2, bidirectional=bidirectional)
    x = case.x.astype(np.float32)
    if tokens:
        x = case.random.integers(0, INPUTS, (STEPS, BATCH))
    mask = np.arange(STEPS)[:, None] >= padding
    first = random_state("gru_before", (layer._spec.states, BATCH, 9))[0].astype("f4")
    x[~mask] = 99 if tokens else np.nan  # which nobody looks at
    y, last = layer(x, first, mask=mask)
    for b, left in enumerate(padding):
        own_y, own_last = layer(x[left:, b : b + 1], first[:, b : b + 1])
        assert_same_bits("y", y[left:, b], own_y[:, 0])
        assert_same_bits("last", last[:, b], own_last[:, 0])
        assert not y[:left, b].any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_output_stands_where_steps_are_masked(bidirectional: bool) -> None:
    case = Case()
    layer = make("lstm", INPUTS, HIDDEN, 2, bidirectional=bidirectional, dtype="float64")
    given = arguments(case, "resets", "mask", "lengths")
    zeros, _, plain = layer.forward(case.x, **given)
    y, _, tape = layer.forward(case.x, **given, masked_output="last")
    dy = case.normal(*y.shape)
    moved = np.zeros_like(dy)  # where the outputs that it is the gradient in come from
    for b, length in enumerate(LENGTHS):
        for d in range(layer.num_directions):
            units = slice(d * HIDDEN, (d + 1) * HIDDEN)
            source = None
            for t in range(length) if d == 0 else reversed(range(length)):
                source = t if case.mask[t, b] else source
                want = 0 if source is None else zeros[source, b, units]
                np.testing.assert_array_equal(y[t, b, units], want)
                if source is not None:
                    moved[source, b, units] += dy[t, b, units]
        assert not y[length:, b].any()
    got, want = tape.backward(dy), plain.backward(moved)
    assert_close("dx", got.x, want.x, 1e-12)
    for name, array in want.params.items():
        assert_close(name, got.params[name], array, 1e-12)


def test_what_is_told_of_a_tape_is_where_it_belongs() -> None:
    case = Case()
    layer = make("lstm", INPUTS, HIDDEN, bidirectional=True, dtype="float64")
    given = arguments(case, "mask", "lengths")
    _, _, tape = layer.forward(case.x, **given)
    dy = np.ones((STEPS, BATCH, layer.output_size))
    told = tape.backward(dy, state_gradients=True).steps
    live = live_steps(STEPS, LENGTHS, case.mask)
    alone = [np.flatnonzero(live[:, b]) for b in range(BATCH)]
    for b, steps in enumerate(alone):
        _, _, own = layer.forward(case.x[steps, b : b + 1])
        want = own.backward(dy[: len(steps), :1], state_gradients=True).steps
        assert told is not None
        assert want is not None
        for mine, theirs in ((tape.gates()[0], own.gates()[0]), (told[0].gates, want[0].gates)):
            for name, array in theirs.items():
                assert_close(name, mine[name][steps, b], array[:, 0], 1e-12)
                assert not np.delete(mine[name][:, b], steps, axis=0).any()


def test_a_cell_whose_y_is_its_gate_tells_zeros_where_it_is_masked() -> None:
    case = Case()
    layer = make("rnn_tanh", INPUTS, HIDDEN, dtype="float64")
    y, _, tape = layer.forward(case.x, mask=case.mask, masked_output="last")
    (gate,) = tape.gates()[0].values()
    assert y[~case.mask].any()
    np.testing.assert_array_equal(gate, np.where(case.mask[..., None], y, 0))


@pytest.mark.parametrize("often", [0.0, 0.05, 0.5, 1.0])
def test_threads_have_no_part_in_it(often: float) -> None:
    random = np.random.default_rng(0)
    layer = make("gru_before", 32, 64, 2)
    x = random.standard_normal((60, 8, 32)).astype(np.float32)
    resets = random.random(x.shape[:2]) < often

    def results() -> Any:
        y, h, tape = layer.forward(x, resets=resets)
        return [y, h, *tape.backward(y)[2].values()]

    check_same_bits(results, threads=[3], teams=())


def test_a_stream_goes_on_where_rows_begin_anew() -> None:
    case = Case()
    layer = make("lstm", INPUTS, HIDDEN, 2, dtype="float64")
    stream = layer.stream(BATCH)
    given = arguments(case, "resets", "mask")
    want, _ = layer(case.x, **given)
    parts = [slice(0, 5), slice(5, 6), slice(6, STEPS)]
    got = [stream.block(case.x[t], **{name: g[t] for name, g in given.items()}) for t in parts]
    assert_same_bits("y", np.concatenate(got), want)


def test_one_sequence_alone_and_out() -> None:
    case = Case()
    layer = make("gru_after", INPUTS, HIDDEN, dtype="float64")
    y, h = layer(case.x, resets=case.resets, mask=case.mask)
    out = np.full(y.shape, np.nan)
    assert layer(case.x, resets=case.resets, mask=case.mask, out=out)[0] is out
    assert_same_bits("out", out, y)
    own_y, own_h = layer(case.x[:, 2], resets=case.resets[:, 2], mask=case.mask[:, 2])
    assert_same_bits("y", own_y, y[:, 2])
    assert_same_bits("h", own_h, h[:, 2])


def test_resets_are_as_they_were_at_the_call() -> None:
    case = Case()
    layer = make("gru_after", INPUTS, HIDDEN, dtype="float64")
    resets, mask = case.resets.copy(), case.mask.copy()
    y, _, tape = layer.forward(case.x, resets=resets, mask=mask, masked_output="last")
    want = tape.backward(np.ones_like(y))
    resets[...], mask[...] = True, True
    assert_same_bits("dx", tape.backward(np.ones_like(y)).x, want.x)


@pytest.mark.parametrize("residual", [False, [True, True]])
def test_a_stack_hands_them_to_its_layers(residual: Any) -> None:
    case = Case(features=HIDDEN)
    layers = [make(cell, HIDDEN, HIDDEN, dtype="float64") for cell in ("gru_after", "lstm")]
    stack = rk.Stack(layers, residual=residual)
    given = arguments(case, "resets", "mask", "lengths")
    live = live_steps(STEPS, LENGTHS, case.mask)
    first, state, tape = stack.forward(case.x, **given, masked_output="last")
    below = layers[0](case.x, **given)[0] + (case.x * live[..., None] if residual else 0)
    y = layers[1](below, **given)[0] + (below if residual else 0)
    assert_close("y", first[live], y[live], 1e-12)
    assert_same_bits("frozen", stack.freeze()(case.x, **given, masked_output="last")[0], first)
    ends = [np.flatnonzero(live[:, b])[-1:] for b in range(BATCH)]
    last = stack.last_output(y, state, LENGTHS, mask=case.mask)
    for b, end in enumerate(ends):
        if residual and end.size:
            assert_close("last output", last[b], y[end[0], b], 1e-12)
    dy = case.normal(*y.shape)
    got, way = tape.backward(dy).x, case.normal(*case.x.shape)

    def loss() -> float:
        return float((stack(case.x, **given, masked_output="last")[0] * dy).sum())

    want = np.float64(slope(loss, [case.x], [way]))
    assert_close("dx along a way", (got * way).sum(), want, 1e-7)


@pytest.mark.parametrize("cell", CLASSES)
def test_recompute_takes_them_too(cell: str) -> None:
    case = Case()
    layer = make(cell, INPUTS, HIDDEN, 2, dtype="float64", dropout=0.3)
    given = {**arguments(case, "resets", "mask", "lengths"), "masked_output": "last"}
    y, last, tape = layer.forward(case.x, **given, dropout_key=1, recompute=4)
    want_y, want_last, whole = layer.forward(case.x, **given, dropout_key=1)
    assert_same_bits("y", y, want_y)
    for mine, theirs in zip(as_tuple(last), as_tuple(want_last), strict=True):
        assert_same_bits("last", mine, theirs)
    assert_close("dx", tape.backward(y).x, whole.backward(y).x, 1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resets": np.zeros((2, 3), int)}, "resets must be bool, got int64: resets != 0"),
        ({"mask": np.ones((2, 3), np.float32)}, "mask must be bool, got float32"),
        ({"resets": np.zeros((3, 2), bool)}, r"resets must have shape \(2, 3\), got \(3, 2\)"),
        ({"segments": np.zeros((2, 3))}, "segments must be integers"),
        ({"segments": np.full((2, 3), -1)}, "segments must be 0 or above, got -1.*mask="),
        ({"reset_to": "one"}, "reset_to must be one of 'zero', 'initial'"),
        ({"reset_to": None}, "reset_to must be one of 'zero', 'initial'"),
        ({"reset_to": np.zeros((1, 2, 5), "f4")}, r"reset_to\['h'\] must have shape \(1, 3, 5\)"),
        (
            {"tbptt": 2, "reset_to": np.zeros((1, 1, 5), "f4")},
            "tbptt needs reset_to='zero', got a",
        ),
        ({"masked_output": "h"}, "masked_output must be one of 'zero', 'last'"),
        ({"tbptt": 0}, "tbptt must be a positive integer"),
        ({"tbptt": 2, "recompute": 2}, "tbptt and recompute must not both be given"),
        ({"tbptt": 2, "reset_to": "initial"}, "tbptt needs reset_to='zero'"),
    ],
)
def test_errors_say_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    layer = rk.GRU(4, 5)
    with pytest.raises((TypeError, ValueError), match=message):
        layer.forward(np.zeros((2, 3, 4), np.float32), **wrong)


def test_tbptt_needs_one_direction() -> None:
    with pytest.raises(ValueError, match="tbptt needs a layer with bidirectional=False"):
        rk.GRU(4, 5, bidirectional=True).forward(np.zeros((2, 3, 4), np.float32), tbptt=1)


def _pieces(layer: Any, case: Case, every: int, given: dict[str, Any]) -> Callable[[Any], Any]:
    """The loop that users write: pieces with the state handed on, and no gradient through it."""
    state, tapes = None, []
    for t in range(0, STEPS, every):
        own = {name: marks[t : t + every] for name, marks in given.items()}
        _, state, tape = layer.forward(case.x[t : t + every], state, **own)
        tapes.append((t, tape))

    def backward(dy: Any) -> Any:
        parts = [tape.backward(dy[t : t + every]) for t, tape in tapes]
        dx = np.concatenate([part.x for part in parts])
        return dx, {n: sum(part.params[n] for part in parts) for n in layer.params}

    return backward


@pytest.mark.parametrize("names", [(), ("resets",), ("resets", "mask")], ids="+".join)
@pytest.mark.parametrize("every", [1, 4, STEPS, 99])
def test_tbptt_is_the_loop_over_pieces(every: int, names: tuple[str, ...]) -> None:
    case = Case()
    layer = make("lstm", INPUTS, HIDDEN, 2, dtype="float64")
    given = arguments(case, *names)
    y, last, tape = layer.forward(case.x, tbptt=every, **given)
    want_y, want_last = layer(case.x, **given)
    assert_same_bits("y", y, want_y)
    for mine, theirs in zip(last, want_last, strict=True):
        assert_same_bits("last", mine, theirs)
    dy = case.normal(*y.shape)
    dx, params = _pieces(layer, case, every, given)(dy)
    got = tape.backward(dy)
    assert_close("dx", got.x, dx, 1e-12)
    for name, array in params.items():
        assert_close(name, got.params[name], array, 1e-12)
    assert_same_bits(
        "gates", tape.gates()[1]["f"], layer.forward(case.x, **given)[2].gates()[1]["f"]
    )
    steps = tape.backward(dy, state_gradients=True).steps
    assert steps is not None
    if every >= STEPS:
        whole = layer.forward(case.x, **given)[2].backward(dy, state_gradients=True).steps
        assert whole is not None
        assert_same_bits("steps", steps[0].h, whole[0].h)


def test_tbptt_reaches_rows_that_ended_in_an_earlier_piece() -> None:
    case, lengths = Case(), [STEPS, 3, 6, 0]
    layer = make("gru_after", INPUTS, HIDDEN, dtype="float64")
    _, _, tape = layer.forward(case.x, None, lengths, tbptt=4)
    dx = tape.backward(dlast=np.ones((BATCH, HIDDEN))).x
    reached = [np.flatnonzero(dx[:, b].any(axis=1)).tolist() for b in range(BATCH)]
    assert reached == [[12], [0, 1, 2], [4, 5], []]


def test_tbptt_with_dropout_has_the_masks_of_one_call() -> None:
    case = Case()
    layer = make("gru_after", INPUTS, HIDDEN, 2, dtype="float64", dropout=0.5)
    y, _, _ = layer.forward(case.x, tbptt=4, dropout_key=3)
    assert_same_bits("y", y, layer.forward(case.x, dropout_key=3)[0])


def test_tbptt_of_a_layer_that_runs_back() -> None:
    case = Case()
    layer = make("lstm", INPUTS, HIDDEN, dtype="float64", reverse=True)
    twin = make("lstm", INPUTS, HIDDEN, dtype="float64")
    for name, p in layer.params.items():
        twin.params[name.removesuffix("_reverse")] = p
    x, dy = case.x[:12], case.normal(12, BATCH, HIDDEN)
    y, _, tape = layer.forward(x, tbptt=4)
    want_y, _, want = twin.forward(x[::-1], tbptt=4)
    assert_same_bits("y", y, want_y[::-1])
    assert_close("dx", tape.backward(dy).x, want.backward(dy[::-1]).x[::-1], 1e-12)
    steps = tape.backward(dy, state_gradients=True).steps
    want_steps = want.backward(dy[::-1], state_gradients=True).steps
    assert steps is not None
    assert want_steps is not None
    assert_close("steps", steps[0].h, want_steps[0].h[::-1], 1e-12)


@pytest.mark.parametrize("recompute", [None, 4])
def test_merged_directions(recompute: int | None) -> None:
    case = Case()
    given = {**arguments(case, "resets", "mask", "lengths"), "recompute": recompute}
    merged, apart = (
        make("gru_after", INPUTS, HIDDEN, bidirectional=True, merge=merge, dtype="float64")
        for merge in ("sum", "concat")
    )
    y, _, tape = merged.forward(case.x, **given)
    both, _, want = apart.forward(case.x, **given)
    assert_close("y", y, both[..., :HIDDEN] + both[..., HIDDEN:], 1e-12)
    dy = case.normal(*y.shape)
    twice = np.concatenate([dy, dy], axis=-1)
    assert_close("dx", tape.backward(dy).x, want.backward(twice).x, 1e-12)
    with pytest.raises(ValueError, match="masked_output='last' needs a layer with merge='concat'"):
        merged.forward(case.x, mask=case.mask, masked_output="last")
    stack = rk.Stack([merged])
    with pytest.raises(ValueError, match="masked_output='last' needs a layer with merge='concat'"):
        stack(case.x, mask=case.mask, masked_output="last")


@pytest.mark.parametrize("tokens", [False, True])
def test_more_rows_than_are_computed_at_once(tokens: bool) -> None:
    random, steps, batch = np.random.default_rng(0), 90, 8
    layer = make("lstm", 6, 7, 2, dtype="float64")
    x: Any = random.standard_normal((steps, batch, 6))
    if tokens:
        x = random.integers(0, 6, (steps, batch))
    pairs = np.arange(steps)[:, None] % 2 == np.zeros(batch, int)  # sequences of two steps

    def as_rows(array: Any) -> Any:
        return array.reshape(steps // 2, 2, batch, *array.shape[2:]).swapaxes(0, 1)

    y, _, tape = layer.forward(x, resets=pairs)
    short = as_rows(x).reshape(2, -1, *x.shape[2:])
    want_y, _, want = layer.forward(short)
    assert_same_bits("y", as_rows(y).reshape(want_y.shape), want_y)
    got = tape.backward(y, state_gradients=True)
    wanted = want.backward(want_y, state_gradients=True)
    if not tokens:
        assert_same_bits("dx", as_rows(got.x).reshape(short.shape), wanted.x)
    assert got.steps is not None
    assert wanted.steps is not None
    assert_same_bits("steps", as_rows(got.steps[0].h).reshape(want_y.shape), wanted.steps[0].h)
    for name, array in wanted.params.items():
        assert_close(name, got.params[name], array, 1e-12)

# SPDX-License-Identifier: Apache-2.0
"""``gradients``: the LSTM's reach far back where the simple RNN's vanish; the paths add up."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from rnnkern import Recurrent, StateGradients, Tape
from rnnkern.cells import CELLS
from rnnkern.explore import EXPERIMENTS, Result, gradients
from rnnkern.explore.gradients import PATHS, figure, knows_paths, paths_to_h, shares
from rnnkern.explore.model import Batch, Model


@pytest.fixture(scope="module")
def result() -> Result:
    return gradients(cells=("rnn", "gru", "lstm"), quick=True)


def only(values: list[float]) -> float:
    (value,) = values
    return value


def test_far_back_gated_cells_have_100_times_the_gradient_of_the_simple_rnn(result: Result) -> None:
    for state in ("initial", "trained"):
        (of_rnn,) = result.values("T-t = 100", cell="rnn", state=state, radius=0.8)
        for cell in ("gru", "lstm"):
            assert only(result.values("T-t = 100", cell=cell, state=state)) >= 100.0 * of_rnn


def test_a_small_spectral_radius_makes_gradients_vanish_and_a_large_one_explode(
    result: Result,
) -> None:
    small, one, large = (
        only(result.values("T-t = 100", cell="rnn", state="initial", radius=radius))
        for radius in (0.8, 1.0, 1.2)
    )
    assert small < 1e-8
    assert small < one < large
    # A saturated tanh may hold even a large radius down somewhat, but not to vanishing.
    assert large > 0.1


def test_gates_let_the_gradient_pass_directly(result: Result) -> None:
    assert set(result.values("direct", cell="rnn")) == {0.0}
    for cell in ("gru", "lstm"):
        assert only(result.values("direct", cell=cell, state="trained")) > 0.5


@pytest.mark.parametrize("cell", [n for n, c in CELLS.items() if knows_paths(c.build(1, 1))])
def test_paths_sum_to_the_gradient(cell: str) -> None:
    rng = np.random.default_rng(1)
    model = Model(cell, 3, 6, 2, readout="last", seed=2, dtype="float64")
    batch = Batch(rng.standard_normal((9, 4, 3)), rng.integers(0, 2, 4))
    tape, (traced,) = model.trace(batch)
    paths = paths_to_h(model.recurrent, tape, traced)
    assert set(paths) <= set(PATHS)
    whole = traced.h[:-1]
    if cell == "lstm":
        # c_{t-1} is reached by h_{t-1} and by c_t; what it gives to c_t is no part of h.
        assert traced.c is not None
        assert "direct" not in paths
    np.testing.assert_allclose(sum(paths.values()), whole, rtol=0.0, atol=1e-14)
    assert np.abs(whole).max() > 1e-6
    total = np.asarray(sum(shares(model.recurrent, tape, traced).values()))
    np.testing.assert_allclose(total, 1.0, atol=1e-12)


def test_an_lstm_cell_states_parts() -> None:
    # What is left beside f·∂L/∂c is what came by h: o_{t-1}·(1 - tanh² c_{t-1})·∂L/∂h_{t-1}, so
    # it is 0 where the output gate is shut.
    rng = np.random.default_rng(1)
    model = Model("lstm", 3, 6, 2, readout="last", seed=2, dtype="float64")
    batch = Batch(rng.standard_normal((9, 4, 3)), rng.integers(0, 2, 4))
    open_shares = shares(model.recurrent, *_traced(model, batch))
    model.params["recurrent.bias_l0"][-6:] = -20.0
    shut_shares = shares(model.recurrent, *_traced(model, batch))
    assert open_shares["direct"].max() < 0.99
    assert shut_shares["direct"][:-1].min() > 0.999


def _traced(model: Model, batch: Batch) -> tuple[Tape, StateGradients]:
    tape, (traced,) = model.trace(batch)
    return tape, traced


def test_the_result_has_a_row_per_case_and_a_curve_per_row(result: Result) -> None:
    assert len(result.rows) == len(result.curves) == 2 * (3 + 1 + 1)
    assert all(len(curve["norm"]) == 101 and curve["norm"][0] == 1.0 for curve in result.curves)


def test_the_picture_has_axes_with_names(result: Result) -> None:
    drawn = figure(result)
    assert all(axes.get_ylabel() for axes in drawn.axes)
    assert len(drawn.axes) == 4


def test_paths_of_a_cell_that_is_not_known_are_not_told() -> None:
    class Unknown(Recurrent):
        """A cell that the program has never heard of."""

    model = Model("gru", 3, 6, 2, readout="last", dtype="float64")
    tape, traced = _traced(model, Batch(np.ones((4, 2, 3)), np.zeros(2, np.int64)))
    layer = object.__new__(Unknown)
    assert paths_to_h(layer, tape, traced) == shares(layer, tape, traced) == {}


@pytest.mark.parametrize("name", ["gradients", "review"])
def test_a_table_says_what_is_not_known_of_a_cell(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module(f"rnnkern.explore.{name}")
    monkeypatch.setattr(program, "way_of", lambda layer: None)
    found = EXPERIMENTS[name](cells=("gru",), quick=True)
    measure = {"gradients": "direct", "review": "gate ratio"}[name]
    assert set(found.values(measure)) == {None}
    told = [line for line in found.table().splitlines() if line.startswith("gru ")]
    assert told
    assert all("unknown" in line and "nan" not in line for line in told)
    drawn = program.figure(found)
    texts = {text.get_text() for axes in drawn.axes for text in axes.texts}
    assert ("paths not known" in texts) == (name == "gradients")

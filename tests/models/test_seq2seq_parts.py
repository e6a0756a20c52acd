# SPDX-License-Identifier: Apache-2.0
"""Seq2Seq: the options of its encoder and decoder, those that no decoder can have among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.differences import slope


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cell_options": {"reverse": True}}, ValueError, "cell_options must have no reverse=True"),
        (
            {"decoder_cell": "GRU", "decoder_options": {"reverse": True}},
            ValueError,
            "decoder_options must have no reverse=True.*one direction",
        ),
        (
            {"bidirectional": True, "cell_options": {"merge": "sum"}},
            ValueError,
            "cell_options must have no merge='sum'.*decoder_cell and decoder_options",
        ),
        (
            {"bidirectional": True, "cell_options": {"activation": ("tanh", "relu")}},
            ValueError,
            r"cell_options must have no activation=\('tanh', 'relu'\)",
        ),
        (
            {
                "bidirectional": True,
                "attention": "dot",
                "decoder_cell": "GRU",
                "cell_options": {"merge": "average"},
            },
            ValueError,
            "attention needs an encoder with merge='concat', got 'average'.* 8 wide",
        ),
        (
            {"cell_options": {"dropout": 0.5}},
            TypeError,
            "cell_options must not have 'dropout', which the model gives its layers",
        ),
        ({"cell_options": ["reset"]}, TypeError, "cell_options must be arguments by name, got"),
        (
            {"cell_options": {"clip": float("nan")}},
            ValueError,
            "clip must be a finite number of at least 0, got nan",
        ),
        (
            {"cell_options": {"zoneout": np.zeros(2)}},
            TypeError,
            "zoneout must be a finite number",
        ),
        ({"cell_options": {"reverse": np.zeros(2)}}, TypeError, "reverse must be"),
    ],
)
def test_what_no_decoder_can_be(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        rk.Seq2Seq(5, 6, 4, bos=4, eos=5, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"cell_options": {"reverse": True}},
        {"cell_options": {"merge": "sum"}, "bidirectional": True},
    ],
    ids=str,
)
def test_an_encoder_may_run_back_or_merge(options: dict[str, Any]) -> None:
    options = {**options, "decoder_cell": "LSTM"}
    model = rk.Seq2Seq(5, 6, 4, bos=4, eos=5, seed=0, dtype="float64", **options)
    source, answers = np.random.default_rng(0).integers(0, 5, (4, 3)), np.zeros((3, 3), int)
    _, grads = model.loss_and_grads(source, answers)
    p, gradient = model.params["encoder.bias_l0"], grads.params["encoder.bias_l0"]
    found = slope(lambda: model.evaluate(source, answers), [p], [np.ones_like(p)])
    assert found == pytest.approx(gradient.sum(), rel=1e-5)
    assert model.greedy(source, None, 3)[0].shape[1] == 3

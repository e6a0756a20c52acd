# SPDX-License-Identifier: Apache-2.0
"""Seq2Seq: the options of its encoder and decoder, those that no decoder can have among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk


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
    ],
)
def test_what_no_decoder_can_be(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        rk.Seq2Seq(5, 6, 4, bos=4, eos=5, **options)


@pytest.mark.parametrize("own", [{"reverse": True}, {"merge": "sum", "bidirectional": True}])
def test_an_encoder_may_run_back_or_merge(own: dict[str, Any]) -> None:
    both = own.pop("bidirectional", False)
    options: Any = {"cell_options": own, "decoder_cell": "LSTM", "bidirectional": both}
    model = rk.Seq2Seq(5, 6, 4, bos=4, eos=5, seed=0, dtype="float64", **options)
    source, answers = np.random.default_rng(0).integers(0, 5, (4, 3)), np.zeros((3, 3), int)
    _, grads = model.loss_and_grads(source, answers)
    p, gradient = model.params["encoder.bias_l0"], grads.params["encoder.bias_l0"]
    losses = []
    for shift in (1e-5, -2e-5):
        p += shift
        losses.append(model.evaluate(source, answers))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(gradient.sum(), rel=1e-5)
    assert model.greedy(source, None, 3)[0].shape[1] == 3

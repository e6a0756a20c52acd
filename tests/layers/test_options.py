# SPDX-License-Identifier: Apache-2.0
"""Options of constructors, facts of layers and NumPy's floating-point errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.cells import layer_classes

from support.arguments import BATCH, FLOATS, HIDDEN, INPUTS, TOKENS, model
from support.layers import CELLS, make


def of_sizes(layer: Any) -> Callable[..., Any]:
    """A constructor that is given options alone."""
    return partial(layer, 5, 4)


MAKERS: dict[str, Callable[..., Any]] = {
    **{name: of_sizes(layer) for name, layer in layer_classes().items()},
    "Linear": lambda **o: rk.Linear(5, 4, **o),
    "Seq2Seq": lambda **o: rk.Seq2Seq(5, 4, 3, bos=0, eos=1, **o),
    "Adam": lambda **o: rk.Adam(rk.Linear(5, 4), **o),
    "SGD": lambda **o: rk.SGD(rk.Linear(5, 4), 0.1, **o),
}


MISSPELT = {"Linear": ("biass", "bias"), "Adam": ("beta", "betas"), "SGD": ("momentun", "momentum")}


@pytest.mark.parametrize("name", MAKERS)
def test_misspelt_options(name: str) -> None:
    wrong, right = MISSPELT.get(name, ("bidirectionl", "bidirectional"))
    with pytest.raises(TypeError, match=f"^{name} has no argument '{wrong}': did .* '{right}'"):
        MAKERS[name](**{wrong: True})
    with pytest.raises(TypeError, match=f"^{name} has no argument 'xyz': only .*{right}"):
        MAKERS[name](xyz=1)


def test_misspelt_options_of_a_models_cells() -> None:
    with pytest.raises(TypeError, match="LSTM has no argument 'bais': did you mean 'bias'"):
        model(cell_options={"bais": False})


@pytest.mark.parametrize("name", [*layer_classes(), "Linear", "Seq2Seq"])
def test_spellings_of_dtype(name: str) -> None:
    for wide in ("float64", "f8", "double", float, np.float64, np.dtype("float64")):
        config = MAKERS[name](dtype=wide).config()
        assert config["dtype"] == "float64"
    for narrow in ("float32", "f4", np.float32, np.dtype("float32")):
        assert MAKERS[name](dtype=narrow).config()["dtype"] == "float32"
    wanted = "dtype must be 'float32' or 'float64', got "
    unknown: list[Any] = [None, "float23", [1, 2], {}]
    for wrong in unknown:
        with pytest.raises((TypeError, ValueError), match=wanted):
            MAKERS[name](dtype=wrong)
    for other in ("float16", int, ">f8"):
        with pytest.raises(ValueError, match=wanted):
            MAKERS[name](dtype=other)


FACTS = {
    "LSTM": [*rk.LSTM(1, 1).config(), "num_directions"],
    "GRU": ["reset"],
    "RNN": ["nonlinearity"],
    "Linear": list(rk.Linear(1, 1).config()),
    "Seq2Seq": ["bos", "eos", "device", "encoder"],
}


@pytest.mark.parametrize(("name", "fact"), [(n, f) for n, facts in FACTS.items() for f in facts])
def test_facts_are_read_only(name: str, fact: str) -> None:
    made = MAKERS[name]()
    before = getattr(made, fact)
    with pytest.raises(AttributeError, match=f"{fact}.*{name}"):
        setattr(made, fact, 3)
    with pytest.raises(AttributeError):
        delattr(made, fact)
    assert getattr(made, fact) is before
    made.note = "what is not ours may be set"
    made.note = "again"


def test_facts_of_a_stream() -> None:
    with pytest.raises(AttributeError, match="batch"):
        rk.LSTM(5, 4).stream().batch = 3  # type: ignore[misc]


@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e38])
@pytest.mark.parametrize("cell", CELLS)
def test_whatever_seterr_says(cell: str, scale: float) -> None:
    x = FLOATS * np.float32(1.0 if scale > 1 else scale)
    with np.errstate(all="raise"):
        layer = make(cell, INPUTS, HIDDEN, 2, dropout=0.5, seed=0)
        head = rk.Linear(HIDDEN, 9)
        optimizers = [
            rk.Adam([layer, head]),
            rk.SGD([layer, head], 0.1, momentum=0.9, nesterov=True, weight_decay=1e-30),
        ]
        y, _, tape = layer.forward(x, dropout_key=1)
        logits, head_tape = head.forward(y)
        rk.softmax_cross_entropy(logits, TOKENS)
        dlogits = np.full_like(logits, scale)
        dy, of_head = head_tape.backward(dlogits)
        _, _, grads = tape.backward(dy)
        layer.stream(BATCH, weights="bfloat16").block(x)
        rk.clip_grad_norm([grads, of_head], 1e-30)
        rk.clip_grad_value([grads, of_head], 1e-30)
        for optimizer in optimizers:
            optimizer.step([grads, of_head])


def test_whatever_seterr_says_of_answers() -> None:
    seq = model()
    seq.params["output.bias"][3] = 1e4
    with np.errstate(all="raise"):
        seq.greedy(TOKENS, None, 3)
        seq.beam(TOKENS, None, 3, width=2)
        seq.beam(TOKENS, None, 3, width=3, length_penalty=1.0)


def test_a_forget_bias_fits_the_dtype() -> None:
    rk.LSTM(2, 2, forget_bias=1e300, dtype="float64")
    with pytest.raises(ValueError, match="forget_bias must be a finite number of at least -3"):
        rk.LSTM(2, 2, forget_bias=1e300)


@pytest.mark.parametrize("text", ["f4,f4", "(", "1(", "float32 if"])
def test_text_that_is_no_dtype(text: str) -> None:
    with pytest.raises((TypeError, ValueError), match="dtype must be 'float32' or 'float64'"):
        rk.Linear(1, 1, dtype=text)


def test_a_number_beyond_every_float() -> None:
    with pytest.raises(ValueError, match="max_norm must be a finite number above 0"):
        rk.clip_grad_norm({"p": np.ones(1)}, 10**400)

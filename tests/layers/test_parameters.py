# SPDX-License-Identifier: Apache-2.0
"""A layer's parameters: arrays fixed for life, checked on the way in, the same for all who read."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.layers.parameters import undrawn

from support.compare import assert_same_bits
from support.layers import CELLS, CLASSES, make

X = np.random.default_rng(0).standard_normal((6, 3, 5), np.float32)


def model(**options: Any) -> rk.Seq2Seq:
    return rk.Seq2Seq(7, 9, 6, bos=0, eos=8, seed=0, **options)


def owners() -> dict[str, Any]:
    """Everything that has ``params``."""
    layers = {cell: make(cell, 5, 4, 2, bidirectional=True) for cell in CELLS}
    return {**layers, "linear": rk.Linear(5, 4, seed=0), "seq2seq": model()}


OWNERS = list(owners())


@pytest.fixture(params=OWNERS)
def owner(request: pytest.FixtureRequest) -> Any:
    return owners()[request.param]


# --- Writing --------------------------------------------------------------------------------------


def test_a_value_is_copied_into_the_array(owner: Any) -> None:
    for name, array in owner.params.items():
        value = np.full(array.shape, 0.25, array.dtype)
        owner.params[name] = value
        assert owner.params[name] is array
        assert_same_bits(name, array, value)
        assert not np.shares_memory(array, value)


def test_operators_in_place_keep_the_array(owner: Any) -> None:
    for name, array in owner.params.items():
        want = array - np.float32(0.5)
        owner.params[name] -= np.float32(0.5)
        assert owner.params[name] is array
        assert_same_bits(name, array, want)


@pytest.mark.parametrize("cell", CELLS)
def test_calls_read_what_was_assigned(cell: str) -> None:
    layer, other = make(cell, 5, 4, seed=1), make(cell, 5, 4, seed=2)
    layer.params["weight_ih_l0"] = other.params["weight_ih_l0"]
    layer.params.update(other.params)
    assert_same_bits("y", layer(X)[0], other(X)[0])
    assert_same_bits("y of a stream", layer.stream(3).block(X), other(X)[0])
    assert_same_bits("y of a frozen layer", layer.freeze()(X)[0], other(X)[0])


def test_update_takes_all_names_or_changes_nothing(owner: Any) -> None:
    before, name = owner.params.copy(), list(owner.params)[-1]
    given = {n: np.zeros(a.shape, a.dtype) for n, a in before.items()}
    bad: list[tuple[dict[str, Any], type[Exception]]] = [
        ({**given, "unknown": 0.0}, KeyError),
        ({n: a for n, a in given.items() if n != name}, KeyError),
        ({**given, name: given[name][None]}, ValueError),
        ({**given, name: given[name].astype(np.float64)}, TypeError),
        ({**given, name: "text"}, TypeError),
    ]
    for values, error in bad:
        with pytest.raises(error):
            owner.params.update(values)
        assert owner.params == before
    owner.params.update(given)
    assert owner.params == given
    owner.params.update(list(before.items()))
    assert owner.params == before


def test_update_may_turn_arrays_among_themselves() -> None:
    layer = rk.RNN(4, 4, seed=0)
    one, other = (layer.params[n].copy() for n in ("weight_ih_l0", "weight_hh_l0"))
    swapped = {
        "weight_ih_l0": layer.params["weight_hh_l0"],
        "weight_hh_l0": layer.params["weight_ih_l0"].T,
        "bias_l0": layer.params["bias_l0"][::-1],
    }
    bias = layer.params["bias_l0"][::-1].copy()
    layer.params.update(swapped)
    assert_same_bits("weight_ih_l0", layer.params["weight_ih_l0"], other)
    assert_same_bits("weight_hh_l0", layer.params["weight_hh_l0"], np.ascontiguousarray(one.T))
    assert_same_bits("bias_l0", layer.params["bias_l0"], bias)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "another shape": (np.zeros((5, 5), np.float32), ValueError, r"shape \(4, 5\), got \(5, 5\)"),
    "a number": (np.float32(0), ValueError, r"shape \(4, 5\), got \(\)"),
    "float64": (np.zeros((4, 5)), TypeError, r"float32, got float64: \.astype\('float32'\)"),
    "a list": ([[0.0] * 5] * 4, TypeError, r"float32, got float64: \.astype\('float32'\)"),
    "integers": (np.zeros((4, 5), int), TypeError, "float32, got int64"),
    "foreign bytes": (np.zeros((4, 5), ">f4"), TypeError, "float32, got float32 of foreign"),
    "nothing": (None, TypeError, "array of numbers"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("make", [lambda: rk.RNN(5, 4), lambda: rk.Linear(5, 4)])
def test_wrong_values(make: Callable[[], Any], case: str) -> None:
    value, error, message = WRONG[case]
    owner = make()
    name = next(iter(owner.params))
    before = owner.params.copy()
    with pytest.raises(error, match=rf"params\['{name}'\] must (be|have) (an )?{message}"):
        owner.params[name] = value
    assert owner.params == before


def test_lists_fit_a_float64_layer() -> None:
    linear = rk.Linear(4, 300, dtype="float64")
    linear.params["bias"] = [1.0] * 300
    assert np.all(linear(np.zeros((1, 4))) == 1.0)


def test_torch_tensors_are_taken() -> None:
    torch = pytest.importorskip("torch")
    layer = rk.LSTM(5, 4)
    array = layer.params["weight_ih_l0"]
    layer.params["weight_ih_l0"] = torch.full((16, 5), 0.5)
    assert layer.params["weight_ih_l0"] is array
    assert np.all(array == 0.5)


# --- Names ----------------------------------------------------------------------------------------


def test_unknown_names_list_the_known_ones(owner: Any) -> None:
    params = owner.params
    calls: list[Callable[[], Any]] = [
        lambda: params["wieght"],
        lambda: params.__setitem__("wieght", np.zeros(3)),
        lambda: params.update({**params, "wieght": np.zeros(3)}),
        lambda: params.setdefault("wieght", np.zeros(3)),
    ]
    for call in calls:
        with pytest.raises(KeyError, match="'wieght', only '") as caught:
            call()
        assert all(repr(name) in str(caught.value) for name in params)
    assert "wieght" not in params
    assert params.get("wieght") is None


@pytest.mark.parametrize("cell", CELLS)
def test_the_two_biases_of_pytorch_are_explained(cell: str) -> None:
    layer = make(cell, 5, 4, 2, bidirectional=True)
    named = {"bias_ih_l1_reverse": "bias_l1_reverse = bias_ih_l1_reverse + bias_hh_l1_reverse"}
    named["bias_hh_l0"] = "bias_l0 = bias_ih_l0 + bias_hh_l0"
    for name, told in named.items():
        with pytest.raises(KeyError) as caught:
            layer.params[name] = np.zeros(4, np.float32)
        assert told in str(caught.value)
        assert ("bias_hn_l" in str(caught.value)) == ("bias_hn_l1" in layer.params)


def test_the_two_biases_of_pytorch_are_explained_by_models() -> None:
    with pytest.raises(KeyError, match=r"encoder\.bias_l0 = encoder\.bias_ih_l0 \+ encoder\.bias"):
        model().params["encoder.bias_ih_l0"] = np.zeros(4, np.float32)


def test_a_state_dict_of_pytorch_changes_nothing() -> None:
    torch = pytest.importorskip("torch")
    layer = rk.LSTM(5, 4, seed=0)
    before = layer.params.copy()
    for bias in (True, False):
        with pytest.raises(KeyError, match="bias"):
            layer.params.update(torch.nn.LSTM(5, 4, bias=bias).state_dict())
        assert layer.params == before


def test_names_cannot_be_removed(owner: Any) -> None:
    params = owner.params
    before = params.copy()
    name = next(iter(params))
    calls: list[Callable[[], Any]] = [
        lambda: params.__delitem__(name),
        lambda: params.pop(name),
        lambda: params.pop("unknown", None),
        params.popitem,
        params.clear,
    ]
    for call in calls:
        with pytest.raises(TypeError, match="names are fixed"):
            call()
    assert params == before
    assert params.setdefault(name, np.zeros(3)) is params[name]


def test_the_mapping_cannot_be_replaced(owner: Any) -> None:
    params = owner.params
    with pytest.raises(AttributeError, match=r"params of \w+ is read-only: .*params\.update"):
        owner.params = params.copy()
    with pytest.raises(AttributeError, match=r"params of \w+ is read-only"):
        del owner.params
    assert owner.params is params


# --- One owner ------------------------------------------------------------------------------------


def test_a_model_shows_its_parts_arrays() -> None:
    seq = model(bidirectional=True)
    parts = {"encoder": seq.encoder, "decoder": seq.decoder, "output": seq.output}
    assert list(seq.params) == [
        f"{part}.{n}" for part, layer in parts.items() for n in layer.params
    ]
    for part, layer in parts.items():
        for name, array in layer.params.items():
            assert seq.params[f"{part}.{name}"] is array
    seq.encoder.params["weight_hh_l0"] = np.zeros_like(seq.encoder.params["weight_hh_l0"])
    assert not seq.params["encoder.weight_hh_l0"].any()
    seq.params["output.bias"] = np.ones(9, np.float32)
    assert np.all(seq.output.params["bias"] == 1.0)


@pytest.mark.parametrize("part", ["encoder", "decoder", "output"])
def test_a_models_parts_cannot_be_replaced(part: str) -> None:
    seq = model()
    with pytest.raises(AttributeError, match=f"{part} of Seq2Seq is read-only"):
        setattr(seq, part, getattr(model(), part))


def test_optimizers_and_files_see_what_was_assigned(tmp_path: Any) -> None:
    seq = model()
    optimizer = rk.SGD(seq.params, lr=1.0)
    new = np.full_like(seq.encoder.params["weight_hh_l0"], 0.5)
    seq.encoder.params["weight_hh_l0"] = new
    seq.params["output.bias"] = seq.params["output.bias"] - np.float32(0.1)
    rk.save(tmp_path / "model.safetensors", seq)
    assert rk.load(tmp_path / "model.safetensors").params == seq.params
    optimizer.step({name: np.ones_like(array) for name, array in seq.params.items()})
    assert_same_bits("trained", seq.encoder.params["weight_hh_l0"], new - np.float32(1.0))


def test_what_is_done_to_a_view_stays_there() -> None:
    layer = rk.LSTM(5, 4, seed=0)
    want = layer(X)[0]
    array = layer.params["weight_hh_l0"]
    array.shape = (4, 16)
    assert_same_bits("y", layer(X)[0], want)
    assert layer.params["weight_hh_l0"].shape == (16, 4)
    setattr(layer.params["weight_ih_l0"], "dtype", np.int32)  # noqa: B010
    assert_same_bits("y", layer(X)[0], want)
    assert layer.params["weight_ih_l0"].dtype == np.float32
    with pytest.raises(ValueError, match="own"):
        layer.params["bias_l0"].resize(1000)
    layer.params["bias_l0"].setflags(write=False)
    with pytest.raises(ValueError, match=r"params\['bias_l0'\] is read-only"):
        layer.params["bias_l0"] = np.zeros(16, np.float32)
    before = layer.params.copy()
    with pytest.raises(ValueError, match=r"params\['bias_l0'\] is read-only"):
        layer.params.update(rk.LSTM(5, 4).params)
    assert layer.params == before


# --- Copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_owners_can_be_copied(owner: Any, copied: Callable[[Any], Any]) -> None:
    before = owner.params.copy()
    twin = copied(owner)
    assert twin.config() == owner.config()
    assert twin.params == owner.params
    for name, array in twin.params.items():
        assert not np.shares_memory(array, owner.params[name])
        array[...] = 0.0
    assert owner.params == before
    if isinstance(owner, rk.Seq2Seq):
        assert twin.params["output.bias"] is twin.output.params["bias"]
    elif isinstance(owner, rk.Linear):
        assert not twin(X).any()
    else:
        assert not twin(X)[0].any()  # its kernels read its own
    assert copied(owner.params) == owner.params


def test_copies_are_values_for_a_later_update(owner: Any) -> None:
    for kept in (owner.params.copy(), copy.copy(owner.params)):
        assert type(kept) is dict
        for array in owner.params.values():
            array += 1.0
        assert owner.params != kept
        owner.params.update(kept)
        assert owner.params == kept


def test_text_and_equality() -> None:
    linear = rk.Linear(5, 4)
    assert repr(linear.params) == "Parameters(weight: float32 (4, 5), bias: float32 (4,))"
    assert isinstance(linear.params, rk.Parameters)
    assert linear.params == dict(linear.params)
    assert linear.params != rk.Linear(5, 4, bias=False).params
    assert linear.params != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(linear.params)


# --- Undrawn --------------------------------------------------------------------------------------


def test_undrawn_models_know_their_parameters_without_memory() -> None:
    huge = {"input_size": 2**19, "hidden_size": 2**18}
    for cls, fixed in CLASSES.values():
        layer = undrawn(cls, {**huge, **fixed})
        assert layer.params.specs()["weight_ih_l0"] == (
            (len(layer.gates) * 2**18, 2**19),
            np.dtype("float32"),
        )
    linear = undrawn(rk.Linear, {"in_features": 2**20, "out_features": 2**20, "dtype": "float64"})
    assert linear.params.specs()["bias"] == ((2**20,), np.dtype("float64"))


def test_undrawn_models_are_filled(owner: Any) -> None:
    twin = undrawn(type(owner), owner.config())
    assert twin.params.specs() == {n: (a.shape, a.dtype) for n, a in owner.params.items()}
    twin.params.fill(owner.params)
    assert twin.params == owner.params
    assert not any(np.shares_memory(a, owner.params[n]) for n, a in twin.params.items())
    if isinstance(owner, rk.Recurrent):
        assert_same_bits("y", twin(X)[0], owner(X)[0])

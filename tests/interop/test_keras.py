# SPDX-License-Identifier: Apache-2.0
"""Keras' layers, their weights and its files: the same numbers as Keras computes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.interop import keras_files

from support.compare import assert_close, assert_same_bits
from support.reference import Array

pytest.importorskip("torch")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras: Any = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
import rnnkern.keras  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras' own

X = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
LAYERS: dict[str, Any] = {
    "rnn": lambda **o: keras.layers.SimpleRNN(5, **o),
    "rnn, relu": lambda **o: keras.layers.SimpleRNN(5, activation="relu", **o),
    "gru, after": lambda **o: keras.layers.GRU(5, **o),
    "gru, before": lambda **o: keras.layers.GRU(5, reset_after=False, **o),
    "lstm": lambda **o: keras.layers.LSTM(5, **o),
}


def built(make: Any, both: bool = False, merge_mode: Any = "concat", **options: Any) -> Any:
    """A layer with biases that are not zero."""
    layer = make(**{"return_sequences": True, **options})
    if both:
        layer = keras.layers.Bidirectional(layer, merge_mode=merge_mode)
    layer(X.astype(options.get("dtype", "float32")))
    rng = np.random.default_rng(1)
    layer.set_weights([rng.standard_normal(w.shape) * 0.5 for w in layer.get_weights()])
    return layer


def outputs(layer: Any, x: Array) -> Array:
    made: Array = layer(x).detach().numpy()
    return made


@pytest.mark.parametrize(
    ("both", "masked"),
    [(False, "zero"), (False, "last"), (True, "zero")],  # Bidirectional has zeros always
)
@pytest.mark.parametrize("name", list(LAYERS))
def test_masks_of_any_form(name: str, both: bool, masked: str) -> None:
    layer = built(LAYERS[name], both, zero_output_for_mask=masked == "zero")
    mask = np.random.default_rng(2).random(X.shape[:2]) < 0.6
    wanted = layer(X, mask=keras.ops.convert_to_tensor(mask)).detach().numpy()
    ours = rk.from_keras(layer)
    y, _ = ours(X, mask=mask, masked_output=masked)
    assert_close(name, y, wanted, 1e-6)


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_layers(name: str, bias: bool, both: bool) -> None:
    layer = built(LAYERS[name], both, use_bias=bias)
    ours = rk.from_keras(layer)
    assert ours.batch_first
    assert_close("y", ours(X)[0], outputs(layer, X), 1e-6)
    weights = layer.get_weights()
    options: dict[str, Any] = {"activation": "relu"} if "relu" in name else {}
    if name.startswith("gru") and not bias:
        with pytest.raises(ValueError, match="reset_after must be given for a GRU without biases"):
            rk.from_keras(weights)
        options["reset_after"] = "after" in name
    again = rk.from_keras(weights, **options)
    assert type(again) is type(ours)
    assert again.params == ours.params
    assert again.config() == ours.config()


@pytest.mark.parametrize(
    "function",
    ["relu", "hard_sigmoid", "softsign", "softplus", "elu", "leaky_relu", "linear", "sigmoid"],
)
@pytest.mark.parametrize("name", ["SimpleRNN", "GRU", "LSTM"])
def test_activations(name: str, function: str) -> None:
    options = {} if name == "SimpleRNN" else {"recurrent_activation": function}
    activation = function if name == "SimpleRNN" else "softsign"
    layer = built(partial(getattr(keras.layers, name), 5, activation=activation, **options))
    assert_close("y", rk.from_keras(layer)(X)[0], outputs(layer, X), 1e-5)


def test_float64_and_last_outputs() -> None:
    layer = keras.layers.LSTM(5, dtype="float64")
    layer(X.astype("float64"))
    ours = rk.from_keras(layer)
    assert ours.dtype == np.float64
    h, _ = ours(X.astype("float64"))[1]
    assert_close("h", h[0], outputs(layer, X.astype("float64")), 1e-12)


@pytest.mark.parametrize("mode", ["sum", "ave", "mul"])
@pytest.mark.parametrize("name", ["gru, after", "lstm"])
def test_merges(name: str, mode: str) -> None:
    """On one another too; and the last output, which Keras merges of both ends."""
    first = built(LAYERS[name], True, mode)
    last = built(lambda **o: LAYERS[name](**{**o, "return_sequences": False}), True, mode)
    y = outputs(first, X)
    assert_close("y", rk.from_keras(first)(X)[0], y, 1e-6)
    ours = rk.from_keras(last)
    assert_close("last", ours.last_output(*ours(X)), outputs(last, X), 1e-6)
    narrow = keras.layers.Bidirectional(LAYERS[name](return_sequences=True), merge_mode=mode)
    want = outputs(narrow, y)
    both = rk.from_keras([first, narrow])
    assert (both.num_layers, both.output_size) == (2, 5)
    assert_close("y of two", both(X)[0], want, 1e-6)


@pytest.mark.parametrize("name", list(LAYERS))
def test_backwards(name: str) -> None:
    """Keras gives the steps as they ran, from the last one on."""
    layer = built(LAYERS[name], go_backwards=True)
    ours = rk.from_keras(layer)
    assert ours.reverse
    y, last = ours(X)
    assert_close("y", y[:, ::-1], outputs(layer, X), 1e-6)
    assert_close("last", ours.last_output(y, last), outputs(layer, X)[:, -1], 1e-6)


def test_stacked_layers_are_one() -> None:
    first, second = (
        built(LAYERS["gru, after"], True),
        keras.layers.Bidirectional(keras.layers.GRU(5, return_sequences=True)),
    )
    want = outputs(second, outputs(first, X))
    ours = rk.from_keras([first, second], batch_first=False)
    assert ours.num_layers == 2
    assert_close("y", ours(X.swapaxes(0, 1).copy())[0].swapaxes(0, 1), want, 1e-6)
    with pytest.raises(ValueError, match="must be of one kind"):
        rk.from_keras([first, built(LAYERS["lstm"], True)])
    with pytest.raises(ValueError, match="must be alike"):
        rk.from_keras([built(LAYERS["rnn"]), built(LAYERS["rnn, relu"])])


def chain(rng: Any, dtype: str) -> Any:
    """A model at random: layers of all kinds on one another, and a Dense."""
    depth = int(rng.integers(1, 4))
    layers: list[Any] = [keras.Input((None, 4))]
    for k in range(depth):
        options: dict[str, Any] = {"use_bias": bool(rng.integers(4)), "dtype": dtype}
        options["return_sequences"] = k < depth - 1 or bool(rng.integers(2))
        kind = ("SimpleRNN", "GRU", "LSTM")[rng.integers(3)]
        if kind == "SimpleRNN":
            options["activation"] = ("tanh", "relu")[rng.integers(2)]
        if kind == "GRU":
            options["reset_after"] = bool(rng.integers(2))
        both = bool(rng.integers(2))
        options["go_backwards"] = not both and not rng.integers(3)
        layer = getattr(keras.layers, kind)(int(rng.integers(1, 9)), **options)
        merge = ("concat", "sum", "ave", "mul")[rng.integers(4)]
        layers.append(keras.layers.Bidirectional(layer, merge, dtype=dtype) if both else layer)
    layers.append(keras.layers.Dense(2, dtype=dtype))
    made = keras.Sequential(layers)
    made.set_weights([rng.standard_normal(w.shape) * 0.3 for w in made.get_weights()])
    return made


NEAR = {"float32": 1e-5, "float64": 1e-6, "mixed_float16": 0.01, "mixed_bfloat16": 0.05}
MERGED: dict[str, Any] = {"sum": np.sum, "ave": np.mean, "mul": np.prod}


@pytest.mark.parametrize("seed", range(8))
def test_random_models(seed: int, tmp_path: Path) -> None:
    """Each layer by its name, now and then from its file: together they are the model."""
    rng = np.random.default_rng(seed)
    dtype = list(NEAR)[seed % len(NEAR)]
    made = chain(rng, dtype)
    if seed % 3 == 0:
        made = rnnkern.keras.accelerate(made)
    x = rng.standard_normal((3, 5, 4))
    want = keras.ops.convert_to_numpy(keras.ops.cast(made(x.astype("float32")), "float32"))
    made.save(tmp_path / "model.keras")
    for source in (made, tmp_path / "model.keras")[: 2 if seed % 5 == 0 else 1]:
        y = x
        for layer in made.layers:
            ours = rk.from_keras(source, layer.name, dtype="float64")
            if isinstance(ours, rk.Linear):
                y = ours(y)
                continue
            y, last = ours(y)
            if layer.return_sequences:  # of which Keras tells the last step first
                y = y[:, ::-1] if getattr(layer, "go_backwards", False) else y
                continue
            h = last[0] if isinstance(last, tuple) else last
            mode = getattr(layer, "merge_mode", "concat")
            y = MERGED[mode](h, axis=0) if mode in MERGED else np.concatenate(list(h), axis=-1)
        assert_close(dtype, y, want, NEAR[dtype])


def test_weights_in_bfloat16(tmp_path: Path) -> None:
    dense = keras.layers.Dense(2, dtype="bfloat16", name="head")
    made = keras.Sequential([keras.Input((4,)), dense])
    made.set_weights([np.arange(1.0, 9.0).reshape(4, 2) / 8, np.ones(2)])
    for ending in ("keras", "h5"):
        made.save(tmp_path / f"model.{ending}")
        found = rk.from_keras(tmp_path / f"model.{ending}", "head")
        assert found.params == rk.from_keras(made, "head").params
        assert found.dtype == np.float32
        assert found.params["weight"].tolist() == (np.arange(1.0, 9.0).reshape(4, 2).T / 8).tolist()


def model() -> Any:
    made = keras.Sequential(
        [
            keras.Input((None, 4)),
            keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True), name="bi"),
            keras.layers.GRU(5, name="first", return_sequences=True, reset_after=False),
            keras.layers.GRU(5, name="second"),
            keras.layers.Dense(2, name="head"),
        ]
    )
    rng = np.random.default_rng(1)
    made.set_weights([rng.standard_normal(w.shape) * 0.5 for w in made.get_weights()])
    return made


@pytest.mark.parametrize("kind", ["keras", "h5", "weights.h5", "functional"])
def test_files(kind: str, tmp_path: Path) -> None:
    made = model()
    if kind == "functional":
        made = keras.Model(made.inputs, made.outputs)
    ending = "keras" if kind == "functional" else kind
    path = tmp_path / f"model.{ending}"
    (made.save_weights if kind == "weights.h5" else made.save)(path)
    names = {"bi": "bidirectional", "second": "gru_1"}
    names |= {"first": "gru", "head": "dense"} if kind == "keras" else {}
    for name, group in names.items():
        found = rk.from_keras(path, group if kind == "weights.h5" else name)
        want = rk.from_keras(made, name)
        assert found.config() == want.config()
        for key, array in want.params.items():
            assert_same_bits(key, found.params[key], array)
    with pytest.raises(ValueError, match=r"model\..*: has no layer 'other', only"):
        rk.from_keras(path, "other")


def keras_2_file(
    path: Path, recurrent_activation: str = "sigmoid", version: str = "2.2.4"
) -> Array:
    """As Keras 2 wrote an LSTM: names with ":0", a configuration of its own; the kernel."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((4, 12)).astype(np.float32)
    arrays: list[Array] = [kernel, rng.standard_normal((3, 12)), rng.standard_normal(12)]
    names = [f"lstm/lstm_cell/{n}:0" for n in ("kernel", "recurrent_kernel", "bias")]
    config: dict[str, Any] = {"class_name": "LSTM", "config": {"name": "lstm", "activation": "tanh",
              "recurrent_activation": recurrent_activation, "units": 3}}  # fmt: skip
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": {"layers": [config]}}
        ).encode()
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [b"lstm"]
        group = root.create_group("lstm")
        group.attrs["weight_names"] = [n.encode() for n in names]
        for name, array in zip(names, arrays, strict=True):
            group.create_dataset(name, data=array.astype(np.float32))
    return kernel


@pytest.mark.parametrize("name", ["LSTM", "Mine"])
@pytest.mark.parametrize("package", ["tf_keras", "tensorflow.python.keras", "theirs.keras"])
def test_hard_sigmoid_is_that_of_the_keras_that_a_class_is_derived_from(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras 2 under several names, and a package of the user's with a version of its own."""
    for module, version in ((package, "2.15.0"), ("theirs", "4.0"), ("mine", "3.1")):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(__version__=version))
    ours, theirs = {"__module__": "mine.layers"}, {"__module__": f"{package}.src.layers.rnn.lstm"}
    weights = built(LAYERS["lstm"]).get_weights()

    class Base:
        """What from_keras asks of a layer."""

        name = "layer"
        stateful = True  # so that it is not run

        def get_weights(self) -> Any:
            return weights

        def get_config(self) -> dict[str, Any]:
            return {"recurrent_activation": "hard_sigmoid"}

    of_keras = type("LSTM", (Base,), theirs)
    made = rk.from_keras(type(name, (of_keras,), ours)())
    assert made.recurrent_activation == "hard_sigmoid(0.2, 0.5)"


@pytest.mark.parametrize("stateful", [False, True])
def test_a_version_of_the_users_package_is_not_that_of_keras(
    stateful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(__version__="2.4"))
    kind = type("LSTM", (keras.layers.LSTM,), {"__module__": "mine.layers"})
    layer = built(partial(kind, 5, recurrent_activation="hard_sigmoid", stateful=stateful))
    assert rk.from_keras(layer).recurrent_activation == "hard_sigmoid"


def test_hard_sigmoid_is_that_of_the_files_keras(tmp_path: Path) -> None:
    for version, wanted in (("2.2.4", "hard_sigmoid(0.2, 0.5)"), ("3.1.0", "hard_sigmoid")):
        keras_2_file(tmp_path / "old.h5", recurrent_activation="hard_sigmoid", version=version)
        assert rk.from_keras(tmp_path / "old.h5", "lstm").recurrent_activation == wanted


def test_files_of_keras_2(tmp_path: Path) -> None:
    kernel = keras_2_file(tmp_path / "old.h5")
    lstm = rk.from_keras(tmp_path / "old.h5", "lstm")
    assert isinstance(lstm, rk.LSTM)
    np.testing.assert_array_equal(lstm.params["weight_ih_l0"], kernel.T)


def two_ways(forward: Any, backward: Any) -> Any:
    layer = keras.layers.Bidirectional(forward, backward_layer=backward)
    layer(X)
    return layer


REFUSED: dict[str, tuple[str, Any]] = {
    "recurrent activation": (
        "the GRU has recurrent_activation='silu': only 'tanh', 'sigmoid'",
        lambda: built(keras.layers.GRU, units=5, recurrent_activation="silu"),
    ),
    "activation": (
        "the LSTM has activation='gelu': only 'tanh'",
        lambda: built(keras.layers.LSTM, units=5, activation="gelu"),
    ),
    "backwards": (
        "must not have go_backwards, which turns what the next one is given",
        lambda: [built(LAYERS["lstm"], go_backwards=True)] * 2,
    ),
    "backwards and forwards": (
        "the LSTM backwards has go_backwards=False: only True",
        lambda: built(
            lambda **o: keras.layers.Bidirectional(
                LAYERS["lstm"](go_backwards=True, **o), backward_layer=LAYERS["lstm"](**o)
            )
        ),
    ),
    "merge": (
        "the Bidirectional has merge_mode=None: only 'concat' or 'sum' or 'ave' or 'mul'",
        lambda: built(LAYERS["lstm"], True, merge_mode=None),
    ),
    "unlike directions": (
        "must have the same activation in both directions, got 'tanh' and 'relu'",
        lambda: two_ways(
            keras.layers.LSTM(3), keras.layers.LSTM(3, go_backwards=True, activation="relu")
        ),
    ),
    "other": ("is a Embedding, which has no like", lambda: keras.layers.Embedding(3, 4)),
    "softmax": ("the Dense has activation='softmax'", lambda: keras.layers.Dense(3, "softmax")),
    "weights": (
        r"no layer's weights, got arrays of shapes \(3, 4\), \(5, 5\)",
        lambda: [np.zeros((3, 4)), np.zeros((5, 5)), np.zeros((2, 2, 2))],
    ),
    "shape": (
        r"weight_ih of layer 0 must have shape \(12, 4\) in a GRU",
        lambda: [np.zeros((4, 11)), np.zeros((4, 12)), np.zeros(12)],
    ),
    "not built": ("has no weights: build it first", lambda: keras.layers.LSTM(3)),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_has_no_like_is_named(case: str) -> None:
    message, make = REFUSED[case]
    source = make()
    if case in ("merge", "softmax", "other"):
        source.build((2, 6, 4))
    with pytest.raises(ValueError, match=message):
        rk.from_keras(source)


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a layer of Keras, a list of layers or of weights"):
        rk.from_keras(3)
    keras_2_file(tmp_path / "old.h5")
    with pytest.raises(ValueError, match=r"old\.h5: has 'lstm': name must say which"):
        rk.from_keras(tmp_path / "old.h5")
    with pytest.raises(ValueError, match=r"name must say which .* one of \['bi', 'first'"):
        rk.from_keras(model())


@pytest.mark.parametrize("ending", ["keras", "h5", "weights.h5"])
def test_damaged_files(ending: str, tmp_path: Path) -> None:
    made, path = model(), tmp_path / f"model.{ending}"
    (made.save_weights if ending == "weights.h5" else made.save)(path)
    content = path.read_bytes()
    name = "gru" if ending == "weights.h5" else "first"
    random = np.random.default_rng(0)
    for _ in range(2):  # each is a process; where no byte that counts has changed it may load
        changed = bytearray(content)
        for place in random.integers(len(changed), size=20):
            changed[place] = random.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):
            rk.from_keras(path, name)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\..*: is no file of Keras', or damaged"):
        rk.from_keras(path, name)


def test_a_file_that_crashes_the_library_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some damaged ones do: here the process of the reader ends itself."""
    keras_2_file(tmp_path / "old.h5")
    monkeypatch.setattr(keras_files, "__name__", "faulthandler")
    with pytest.raises(ValueError, match=r"old\.h5: .* the HDF5 library fails on it"):
        rk.from_keras(tmp_path / "old.h5", "lstm")


def test_a_hostile_configuration(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    for config in ("[", '{"config": {"layers": [3]}}'):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", config)
            archive.writestr("model.weights.h5", b"nothing")
        with pytest.raises(ValueError, match=r"model\.keras"):
            rk.from_keras(path, "gru")

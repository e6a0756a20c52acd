# SPDX-License-Identifier: Apache-2.0
"""ONNX models read: against ONNX's own node tests, ONNX Runtime and PyTorch's exports."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import rnnkern as rk

from support.compare import assert_close
from support.reference import Array

pytest.importorskip("onnxruntime")

from support.onnx_models import GATES, agree, model, node_model, node_tests, run


def problem(op: str, directions: int, *, ragged: bool, state: bool) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    steps, batch, inputs, units = 9, 5, 6, 7

    def draw(*shape: int) -> Array:
        drawn: Array = rng.standard_normal(shape) / np.sqrt(shape[-1])
        return drawn.astype(np.float32)

    arrays = {
        "X": draw(steps, batch, inputs),
        "W": draw(directions, GATES[op] * units, inputs),
        "R": draw(directions, GATES[op] * units, units),
        "B": draw(directions, 2 * GATES[op] * units),
    }
    if ragged:
        arrays["sequence_lens"] = np.array([4, 9, 1, 7, 9], np.int32)
    if state:
        names = ["initial_h", "initial_c"][: 2 if op == "LSTM" else 1]
        arrays |= {name: draw(directions, batch, units) for name in names}
    return arrays


def peepholes(directions: int) -> Array:
    rng = np.random.default_rng(4)
    return rng.standard_normal((directions, 21)).astype(np.float32)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("RNN", {}),
    "rnn, relu": ("RNN", {"activations": ["Relu"]}),
    "gru, before": ("GRU", {}),
    "gru, after": ("GRU", {"linear_before_reset": 1}),
    "lstm": ("LSTM", {}),
    "lstm, peepholes": ("LSTM", {"P": True}),
    "lstm, coupled": ("LSTM", {"input_forget": 1}),
    "lstm, coupled peepholes": ("LSTM", {"P": True, "input_forget": 1, "clip": 0.9}),
    "lstm, functions": ("LSTM", {"activations": ["HardSigmoid", "Relu", "Softsign"], "clip": 0.5}),
    "gru, functions": ("GRU", {"activations": ["Tanh", "Sigmoid"], "clip": 0.7}),
    "gru, numbers": (
        "GRU",
        {
            "activations": ["HardSigmoid", "ScaledTanh"],
            "activation_alpha": [0.3, 1.5],
            "activation_beta": [0.4, 0.7],
            "linear_before_reset": 1,
        },
    ),
    **{
        f"rnn, {name}": ("RNN", {"activations": [name], **numbers})
        for name, numbers in {
            "Affine": {"activation_alpha": [0.8], "activation_beta": [0.1]},
            "Elu": {"activation_alpha": [0.5]},
            "ThresholdedRelu": {"activation_alpha": [0.3]},
            "Softplus": {},
            "HardSigmoid": {"activation_alpha": [0.3], "activation_beta": [0.4]},
        }.items()
    },
}


@pytest.mark.parametrize("extra", ["ragged", "from a state", "both", "neither"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_node(kind: str, direction: str, extra: str) -> None:
    op, attributes = KINDS[kind]
    directions = 2 if direction == "bidirectional" else 1
    each = ("activations", "activation_alpha", "activation_beta")
    attributes = {k: v * directions if k in each else v for k, v in attributes.items()}
    ragged, state = extra in ("ragged", "both"), extra in ("from a state", "both")
    arrays = problem(op, directions, ragged=ragged, state=state)
    if attributes.pop("P", False):
        arrays["P"] = peepholes(directions)
    feeds = {k: v for k, v in arrays.items() if k not in "WRBP"}
    content = node_model(op, arrays, hidden_size=7, direction=direction, **attributes)
    read = agree(content, feeds)
    want = run(content, feeds)
    # Batch first: the same numbers, with other axes.
    turned = {k: v if k == "sequence_lens" else v.swapaxes(0, 1).copy() for k, v in feeds.items()}
    content = node_model(op, arrays, hidden_size=7, direction=direction, layout=1, **attributes)
    got = rk.from_onnx(content)(turned)
    assert_close("Y", got["Y"], want["Y"].transpose(2, 0, 1, 3), 3e-6)
    for name in list(want)[1:]:
        assert_close(name, got[name], want[name].swapaxes(0, 1), 3e-6)
    assert [type(layer).__name__ for layer in read.layers.values()] == [op]


def test_directions_with_functions_of_their_own() -> None:
    arrays = problem("RNN", 2, ragged=True, state=True)
    feeds = {k: v for k, v in arrays.items() if k not in "WRB"}
    content = node_model(
        "RNN", arrays, hidden_size=7, direction="bidirectional", activations=["Tanh", "Relu"]
    )
    layers = agree(content, feeds).layers
    rnn = layers["Y"]
    assert isinstance(rnn, rk.RNN)
    assert rnn.nonlinearity == ("tanh", "relu")


def test_a_state_of_one_kind_alone() -> None:
    arrays = problem("LSTM", 1, ragged=False, state=True)
    for name in ("initial_h", "initial_c"):
        one = {k: v for k, v in arrays.items() if k != name}
        agree(node_model("LSTM", one, hidden_size=7), {k: one[k] for k in one if k not in "WRB"})


def test_onnxs_own_node_tests() -> None:
    passed = 0
    for case in node_tests().values():
        ((inputs, outputs),) = case.data_sets
        (node,) = case.model.graph.node
        named = dict(zip(filter(None, node.input), inputs, strict=True))
        # There the weights are inputs: they become the file's.
        weights = [n for n in named if n in ("W", "R", "B", "P")]
        made = onnx.ModelProto()
        made.CopyFrom(case.model)
        made.graph.initializer.extend(numpy_helper.from_array(named[n], n) for n in weights)
        content = made.SerializeToString()
        got = rk.from_onnx(content)({n: a for n, a in named.items() if n not in weights})
        wanted = zip([n for n in node.output if n], outputs, strict=True)
        for name, want in wanted:
            np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-6)
        passed += 1
    assert passed == 18


TORCH_CELLS = ["RNN", "GRU", "LSTM"]


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("cell", TORCH_CELLS)
def test_what_pytorch_exports(cell: str) -> None:
    torch = pytest.importorskip("torch")

    class Tagger(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, 6)
            self.rnn = getattr(torch.nn, cell)(6, 5, 2, bidirectional=True, batch_first=True)
            self.head = torch.nn.Linear(10, 3)

        def forward(self, tokens: Any) -> Any:
            y, _ = self.rnn(self.embed(tokens))
            return self.head(y).softmax(-1), self.head(y[:, -1])

    torch.manual_seed(0)
    tagger = Tagger().eval()
    tokens = torch.randint(11, (3, 8))
    file = io.BytesIO()
    torch.onnx.export(
        tagger, (tokens,), file, dynamo=False, input_names=["tokens"], output_names=["p", "last"],
        dynamic_axes={"tokens": {0: "batch", 1: "steps"}},
    )  # fmt: skip
    read = agree(file.getvalue(), {"tokens": tokens.numpy()})
    got = read({"tokens": tokens.numpy()[:2, :5]})  # of other sizes than it was traced with
    with torch.no_grad():
        p, last = tagger(tokens[:2, :5])
    assert_close("p", got["p"], p.numpy(), 3e-6)
    assert_close("last", got["last"], last.numpy(), 3e-6)
    recurrent = [layer for layer in read.layers.values() if isinstance(layer, rk.Recurrent)]
    assert [type(layer).__name__ for layer in recurrent] == [cell] * 2
    assert sum(isinstance(layer, rk.Linear) for layer in read.layers.values()) >= 1


def test_layers_are_there_to_train(tmp_path: Path) -> None:
    lstm, head = rk.LSTM(3, 8, seed=0), rk.Linear(8, 1, seed=1)
    lstm.to_onnx(tmp_path / "lstm.onnx")
    read = rk.from_onnx(tmp_path / "lstm.onnx")
    x = np.ones((4, 2, 3), np.float32)
    before = read({"x": x})["y"]
    layer = read.layers["lstm_l0"]
    assert isinstance(layer, rk.LSTM)
    adam = rk.Adam({**read.layers, "head": head})
    y, _, tape = layer.forward(x)
    out, head_tape = head.forward(y)
    dy, head_grads = head_tape.backward(np.ones_like(out))
    adam.step({"lstm_l0": tape.backward(dy), "head": head_grads})
    after = read({"x": x})["y"]
    assert np.abs(after - before).max() > 1e-4, "a call runs what was learned"
    np.testing.assert_array_equal(after, layer(x)[0])


F = np.float32
X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(F)
I64 = np.int64
# name -> op, inputs (arrays are constants of the file, the first but for these is x), attributes
OPS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "transpose": ("Transpose", ["x"], {"perm": [2, 0, 1]}),
    "transpose, reversed": ("Transpose", ["x"], {}),
    "reshape": ("Reshape", ["x", np.array([0, -1])], {}),
    "flatten": ("Flatten", ["x"], {"axis": 2}),
    "unsqueeze": ("Unsqueeze", ["x", np.array([0, -1])], {}),
    "slice": ("Slice", ["x", np.array([-3, 1]), np.array([99, -1]), np.array([1, 2])], {}),
    "slice, backwards": (
        "Slice",
        ["x", np.array([99]), np.array([-99]), np.array([1]), np.array([-2])],
        {},
    ),
    "gather": ("Gather", ["x", np.array([[1, -1]])], {"axis": 1}),
    "expand": ("Expand", ["x", np.array([2, 1, 4, 5])], {}),
    "tile": ("Tile", ["x", np.array([1, 2, 1])], {}),
    "softmax": ("Softmax", ["x"], {"axis": 1}),
    "log-softmax": ("LogSoftmax", ["x"], {}),
    "mean": ("ReduceMean", ["x"], {"axes": [1], "keepdims": 0}),
    "sum": ("ReduceSum", ["x", np.array([0, 2])], {}),
    "max": ("ReduceMax", ["x"], {}),
    "layer norm": (
        "LayerNormalization",
        ["x", np.linspace(0, 1, 5, dtype=F), np.ones(5, F)],
        {"epsilon": 1e-3},
    ),
    "gemm": (
        "Gemm",
        ["flat", X[0].copy(), np.ones(4, F)],
        {"transB": 1, "alpha": 0.5, "beta": 2.0},
    ),
    "gemm, no bias": ("Gemm", ["flat", X[0, 0][:, None] * X[0, 1]], {}),
    "matmul": ("MatMul", ["x", X[0].T.copy()], {}),
    "pad": ("Pad", ["x", np.array([0, 1, 2, 0, 0, 1]), np.array(7, F)], {}),
    "pad, reflect": ("Pad", ["x", np.array([0, 1, 2, 0, 0, 1])], {"mode": "reflect"}),
    "conv": (
        "Conv",
        ["x", np.random.default_rng(1).standard_normal((6, 2, 2)).astype(F), np.ones(6, F)],
        {"group": 2, "dilations": [2], "strides": [2], "pads": [1, 2]},
    ),
    "pow": ("Pow", ["x", np.array(2, F)], {}),
    "leaky": ("LeakyRelu", ["x"], {"alpha": 0.2}),
    "sigmoid": ("Sigmoid", ["x"], {}),
    "dropout": ("Dropout", ["x"], {}),
    "cast": ("Cast", ["x"], {"to": 1}),
    "divide": ("Div", ["x", X + 3], {}),
    "where": ("Where", [X > 0, "x", np.array(0, F)], {}),
}


@pytest.mark.parametrize("name", list(OPS))
def test_what_stands_between(name: str) -> None:
    op, inputs, attributes = OPS[name]
    feeds = {n: X if n == "x" else X[:, 0].copy() for n in inputs if isinstance(n, str)}
    constants = {f"c{k}": a for k, a in enumerate(inputs) if not isinstance(a, str)}
    names = [n if isinstance(n, str) else f"c{k}" for k, n in enumerate(inputs)]
    node = helper.make_node(op, names, ["y"], **attributes)
    agree(model([node], feeds, ["y"], constants), feeds, 1e-6)


def test_integers_and_shapes() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Div", ["length", "minus"], ["half"]),  # cut towards zero
        helper.make_node("Concat", ["half_", "half_"], ["sizes"], axis=0),
        helper.make_node("Neg", ["half"], ["half_"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["y"]),
    ]
    nodes[3], nodes[4] = nodes[4], nodes[3]
    constants = {"one": np.array([2]), "minus": np.array([-2])}
    agree(model(nodes, {"x": X}, ["y"], constants), {"x": X})


def test_older_operators() -> None:
    nodes = [
        helper.make_node("Squeeze", ["x"], ["a"], axes=[0]),
        helper.make_node("Unsqueeze", ["a"], ["b"], axes=[0]),
        helper.make_node("Slice", ["b"], ["c"], starts=[1], ends=[3], axes=[1]),
        helper.make_node("Softmax", ["c"], ["y"], axis=1),  # over all axes from there on
    ]
    agree(model(nodes, {"x": X[:1]}, ["y"], opset=9), {"x": X[:1]}, 1e-6)


def lstm(**attributes: Any) -> bytes:
    return node_model(
        "LSTM", problem("LSTM", 1, ragged=False, state=False), hidden_size=7, **attributes
    )


def edited(change: Callable[[Any], Any]) -> bytes:
    """A good model with one thing changed."""
    made = onnx.load_model_from_string(lstm())
    change(made)
    content: bytes = made.SerializeToString()
    return content


def with_short_peepholes() -> bytes:
    arrays = problem("LSTM", 1, ragged=False, state=False)
    return node_model("LSTM", {**arrays, "P": np.ones((1, 7), F)}, hidden_size=7)


def with_shape(key: str, shape: tuple[int, ...], **attributes: Any) -> bytes:
    arrays = problem("LSTM", 1, ragged=False, state=False)
    return node_model("LSTM", {**arrays, key: np.ones(shape, F)}, hidden_size=7, **attributes)


def shape_refused(key: str, wanted: str, got: tuple[int, ...], **attributes: Any) -> Any:
    """What is said of an array of that shape."""
    message = rf"{key} of node 'Y' \(LSTM\) must have shape \(1, {wanted}\) for hidden_size=7, got"
    return message, lambda: with_shape(key, got, **attributes)


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "no model": ("source is not an ONNX model", lambda: b"PK\x03\x04"),
    "nothing": ("source is not an ONNX model", lambda: b""),
    "peepholes": (r"P of node 'Y' \(LSTM\) must have shape \(1, 21\)", with_short_peepholes),
    "an odd bias": shape_refused("B", "56", (1, 55)),
    "a short bias": shape_refused("B", "56", (1, 28)),
    "rows of W": shape_refused("W", "28, 6", (1, 27, 6)),
    "rows of R": shape_refused("R", "28, 7", (1, 26, 7)),
    "coupled rows of W": shape_refused("W", "28, 6", (1, 21, 6), input_forget=1),
    "coupled rows of R": shape_refused("R", "28, 7", (1, 30, 7), input_forget=1),
    "a coupled bias": shape_refused("B", "56", (1, 42), input_forget=1),
    "clip": ("clip must be a finite number of at least 0", lambda: lstm(clip=-3.0)),
    "activation": (
        r"activations=\['Gelu', 'Tanh', 'Tanh'\]: a LSTM here takes 3 in each direction, of S",
        lambda: lstm(activations=["Gelu", "Tanh", "Tanh"]),
    ),
    "activations": ("takes 3 in each direction", lambda: lstm(activations=["Tanh"] * 2)),
    "number of a function": (
        "must have an alpha of at least 0",
        lambda: lstm(activations=["LeakyRelu", "Tanh", "Tanh"], activation_alpha=[-0.1]),
    ),
    "attribute": ("attribute 'output_sequence'", lambda: lstm(output_sequence=1)),
    "direction": ("direction as one of", lambda: lstm(direction="sideways")),
    "both": ("the first of 2 for direction", lambda: lstm(direction="bidirectional")),
    "hidden": (
        r"hidden_size=9, but R \(1, 28, 7\)",
        lambda: edited(lambda m: setattr(m.graph.node[0].attribute[0], "i", 9)),
    ),
    "weights as inputs": (
        "W of node 'Y' .* must be an initializer",
        lambda: edited(
            lambda m: (
                m.graph.initializer.pop(0),
                m.graph.input.append(helper.make_tensor_value_info("W", 1, [1, 28, 6])),
            )
        ),
    ),
    "operator": (
        r"node 'y' \(Einsum\) is of an operator that is not supported",
        lambda: model([helper.make_node("Einsum", ["x"], ["y"], equation="i->i")], {"x": X}, ["y"]),
    ),
    "domain": (
        "only ONNX's own operators",
        lambda: edited(lambda m: setattr(m.graph.node[0], "domain", "com.microsoft")),
    ),
    "order": (
        "takes 'nobody', which nothing before it gives",
        lambda: model([helper.make_node("Relu", ["nobody"], ["y"])], {"x": X}, ["y"]),
    ),
    "twice": (
        "gives 'x', which is there already",
        lambda: model([helper.make_node("Relu", ["x"], ["x"])], {"x": X}, ["x"]),
    ),
    "output": (
        "has the output 'z', which nothing gives",
        lambda: model([helper.make_node("Relu", ["x"], ["y"])], {"x": X}, ["z"]),
    ),
    "version": (
        "operators 7 to",
        lambda: edited(lambda m: setattr(m.opset_import[0], "version", 5)),
    ),
    "external": (
        "is in a file of its own",
        lambda: edited(lambda m: setattr(m.graph.initializer[0], "data_location", 1)),
    ),
    "short": (
        r"initializer 'W' cannot have the shape \(1, 28, 60000\)",
        lambda: edited(lambda m: m.graph.initializer[0].dims.__setitem__(2, 60000)),
    ),
    "negative": (
        r"initializer 'W' has the shape",
        lambda: edited(lambda m: m.graph.initializer[0].dims.__setitem__(2, -6)),
    ),
    "type": (
        "initializer 'W' is of a type that is not supported",
        lambda: edited(lambda m: setattr(m.graph.initializer[0], "data_type", 16)),
    ),
    "subgraph": (
        "attribute 'then_branch' .* is a GRAPH",
        lambda: model(
            [
                helper.make_node(
                    "If", ["x"], ["y"], then_branch=helper.make_graph([], "then", [], [])
                )
            ],
            {"x": X},
            ["y"],
        ),
    ),
    "attribute of another": (
        "attribute 'noise', which is not supported",
        lambda: model([helper.make_node("Transpose", ["x"], ["y"], noise=1)], {"x": X}, ["y"]),
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_supported_is_named(case: str) -> None:
    message, make = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        rk.from_onnx(make())


def test_inputs_are_checked() -> None:
    read = rk.from_onnx(lstm())
    x = problem("LSTM", 1, ragged=False, state=False)["X"]
    with pytest.raises(KeyError, match="inputs lacks 'X'"):
        read({})
    with pytest.raises(KeyError, match=r"inputs has 'Z', but the model takes \('X',\)"):
        read({"X": x, "Z": x})
    with pytest.raises(TypeError, match=r"inputs\['X'\] must be float32, got float64"):
        read({"X": x.astype(np.float64)})
    with pytest.raises(ValueError, match=r"inputs\['X'\] must have shape \(any, any, any\), got"):
        read({"X": x[0]})
    with pytest.raises(ValueError, match=r"node 'Y' \(LSTM\) cannot be run: x must have input_siz"):
        read({"X": x[:, :, :3]})
    with pytest.raises(TypeError, match="a path or bytes, got <class 'int'>"):
        rk.from_onnx(3)  # type: ignore[arg-type]
    assert read.inputs == ("X",)
    assert re.match(r"OnnxModel\(inputs=\('X',\), outputs=\('Y', 'Y_h', 'Y_c'\)", repr(read))


def test_nothing_is_made_of_sizes_that_a_file_invents() -> None:
    for op, inputs in (
        ("ConstantOfShape", ["n"]),
        ("Expand", ["one", "n"]),
        ("Tile", ["one", "n"]),
    ):
        content = model(
            [helper.make_node(op, inputs, ["y"])],
            {},
            ["y"],
            {"n": np.array([1 << 40]), "one": np.ones(1, F)},
        )
        with pytest.raises(ValueError, match="more than the 268435456 elements kept"):
            rk.from_onnx(content)

# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile ONNX files: a clear error or numbers, never a crash."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import rnnkern as rk

from support.onnx_models import model, node_model
from support.reference import Array

NUMBERS = [-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 255, 2**31, 2**40, 2**63 - 1]
WORDS = ["", "LSTM", "GRU", "RNN", "Expand", "Reshape", "Split", "Pad", "reverse", "Tanh", "x"]
WORDS += ["bidirectional", "y", "w", "clip", "axis", "perm", "If", "com.microsoft", "\0", "x" * 999]


def good(folder: Path) -> Iterator[tuple[bytes, dict[str, Array]]]:
    """Models of several kinds, with inputs that they take."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 2)).astype(np.float32)
    lengths = np.array([2, 3], np.int32)
    layers: list[Any] = [
        rk.LSTM(2, 2, 2, seed=0),
        rk.GRU(2, 2, bidirectional=True, batch_first=True, seed=0),
        rk.RNN(2, 2, bias=False, seed=0),
    ]
    for layer in layers:
        layer.to_onnx(folder / "layer.onnx", lengths=True)
        given = x.swapaxes(0, 1) if layer.batch_first else x
        yield (folder / "layer.onnx").read_bytes(), {"x": given, "lengths": lengths}
    rk.Seq2Seq(3, 3, 2, bos=0, eos=1, bidirectional=True, seed=0).to_onnx(folder / "s.onnx")
    tokens = np.array([[0, 1], [2, 0], [1, 1]])
    feeds = {"source": tokens, "source_lengths": lengths, "target": tokens}
    yield (folder / "s.onnx").read_bytes(), feeds
    weights = {name: rng.standard_normal(s).astype(np.float32) for name, s in {
        "X": (3, 2, 2), "W": (2, 8, 2), "R": (2, 8, 2), "B": (2, 16)
    }.items()}  # fmt: skip
    yield (
        node_model("LSTM", weights, hidden_size=2, direction="bidirectional", layout=1),
        {"X": weights["X"]},
    )
    constants = {
        "w": x[0], "v": x[0, 0], "k": x[:2], "s": np.array([1, 1]),
        "p": np.array([0, 0, 1, 0, 0, 1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Pad", ["x", "p"], ["a"]),
        helper.make_node("Conv", ["a", "k"], ["b"], pads=[1, 0]),
        helper.make_node("Split", ["b", "s"], ["c", "d"], axis=1),
        helper.make_node("Concat", ["d", "c"], ["e"], axis=1),
        helper.make_node("Transpose", ["e"], ["f"], perm=[2, 0, 1]),
        helper.make_node("Reshape", ["f", "s"], ["g"]),
        helper.make_node("Expand", ["v", "s"], ["h"]),
        helper.make_node("MatMul", ["x", "w"], ["i"]),
        helper.make_node("Add", ["i", "v"], ["j"]),
        helper.make_node("Slice", ["j", "s", "s"], ["l"]),
        helper.make_node("Softmax", ["j"], ["y"]),
    ]
    nodes.pop(5)
    yield model(nodes, {"x": x}, ["y", "f", "h", "l"], constants), {"x": x}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, lost, doubled or put elsewhere."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(len(changed) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            changed[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del changed[place : place + draw.choice((1, 2, 50))]
        elif kind == 2:
            changed[place:place] = changed[place : place + draw.choice((1, 8, 99))]
        else:
            del changed[place:]
    return bytes(changed)


def rewritten(content: bytes, draw: random.Random) -> bytes:
    """A model that can be read, with a few of its numbers and names replaced."""
    made = onnx.load_model_from_string(content)
    graph = made.graph
    for _ in range(draw.choice((1, 2, 4))):
        node, tensor = draw.choice(graph.node), draw.choice(graph.initializer)
        kind = draw.randrange(9)
        names = [*node.input, *node.output, *(t.name for t in graph.initializer)]
        if kind == 0 and node.attribute:
            attribute = draw.choice(node.attribute)
            attribute.i = draw.choice(NUMBERS)
            attribute.ints[:] = [draw.choice(NUMBERS) for _ in attribute.ints]
            attribute.s = draw.choice(WORDS).encode()
            attribute.f = float(draw.choice(NUMBERS))
        elif kind == 1 and node.attribute:
            draw.choice(node.attribute).name = draw.choice(WORDS)
        elif kind == 2 and node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice(["", *names])
        elif kind == 3 and node.output:
            node.output[draw.randrange(len(node.output))] = draw.choice(["", *names])
        elif kind == 4:
            node.op_type = draw.choice([n.op_type for n in graph.node] + WORDS)
        elif kind == 5 and tensor.dims:
            tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(NUMBERS)
        elif kind == 6:
            tensor.data_type = draw.randrange(30)
        elif kind == 7 and tensor.raw_data:
            value = np.array(draw.choice(NUMBERS))
            size = len(tensor.raw_data)
            tensor.raw_data = (tensor.raw_data + value.tobytes())[-size:]
        else:
            node.attribute.append(helper.make_attribute(draw.choice(WORDS[1:]), 1))
    changed: bytes = made.SerializeToString()
    return changed


@pytest.mark.parametrize("change", [damaged, rewritten])
def test_mutated_models(change: Any, tmp_path: Path) -> None:
    bases = list(good(tmp_path))
    for content, feeds in bases:
        rk.from_onnx(content)(feeds)  # unchanged it is taken
    draw = random.Random(7)
    refused = ran = 0
    unclear = []
    for _ in range(1500):
        content, feeds = draw.choice(bases)
        mutant = change(content, draw)
        try:
            read = rk.from_onnx(mutant)
            read({name: feeds[name] for name in read.inputs if name in feeds})
            ran += 1
        except (ValueError, TypeError, KeyError) as error:
            refused += 1
            if not re.search("source|node|attribute|initializer|input", str(error)):
                unclear.append(str(error))
    assert not unclear
    assert refused > 500
    assert ran > 20

# SPDX-License-Identifier: Apache-2.0
"""Sequence-to-sequence models as ONNX files."""

from __future__ import annotations

import os

import numpy as np

from rnnkern.interop.onnx.writing import Writer, add_layer, add_linear, input_of
from rnnkern.layers.base import Recurrent
from rnnkern.layers.configured import state_names
from rnnkern.layers.linear import Linear


def write_seq2seq(
    encoder: Recurrent, decoder: Recurrent, output: Linear, path: str | os.PathLike[str]
) -> None:
    """The file that `Seq2Seq.to_onnx` describes."""
    writer = Writer("to_onnx", encoder.dtype)
    source = input_of(writer, encoder, "source", ["source_steps", "batch"], tokens=True)
    ends = writer.input("source_lengths", np.int32, ["batch"])
    target = input_of(writer, decoder, "target", ["target_steps", "batch"], tokens=True)
    _, last = add_layer(writer, encoder, source, [], ends, "encoder")
    given = dict(zip(state_names(encoder), last, strict=True))
    if encoder.bidirectional:
        given = {n: _side_by_side(writer, encoder, n, value) for n, value in given.items()}
    # What the encoder lacks is zero, what the decoder lacks is dropped.
    states = [given.get(name, "") for name in state_names(decoder)]
    y, _ = add_layer(writer, decoder, target, states, "", "decoder")
    logits = add_linear(writer, output.params, y, "output")
    writer.output(logits, "logits", ["target_steps", "batch", output.out_features])
    writer.write(path)


def _side_by_side(writer: Writer, encoder: Recurrent, name: str, state: str) -> str:
    """The last states of both directions (2·L, B, H) as (L, B, 2·H)."""
    apart = np.array([encoder.num_layers, 2, -1, encoder.hidden_size])
    apart_shape = writer.constant(f"apart_{name}", apart)
    split = writer.node("Reshape", state, apart_shape, name=f"both_{name}")
    turned = writer.node("Transpose", split, name=f"turned_{name}", perm=[0, 2, 1, 3])
    shape = writer.constant(f"joined_{name}", np.array([0, 0, -1]))
    joined: str = writer.node("Reshape", turned, shape, name=f"bridge_{name}")
    return joined

# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile files of Keras for ``from_keras``: a clear error or a layer, never a crash.

``from_keras`` has a process of its own read a file, for the HDF5 library can crash on damaged ones.
A process a case would be slow: here one that is forked does both, reading and what follows. Where
it ends by a signal the file goes through ``from_keras`` as it is, which has to tell of it.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import traceback
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

import rnnkern as rk
from rnnkern.interop import keras as from_keras_module
from rnnkern.interop import keras_files

from support.fuzz_files import NUMBERS, TEXTS, folder, nodes

NAME = "rnn"
MEMORY = 256 << 20  # bytes that reading may add; the files have some thousand
SECONDS = 20  # of processor time
UNITS, INPUTS = 3, 4
KINDS = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
WORDS = [
    "LSTM",
    "GRU",
    "SimpleRNN",
    "Bidirectional",
    "Dense",
    "cell",
    "vars",
    "relu",
    "",
    "\0",
    ".",
]
SHAPES: list[Any] = [(), (0,), (12,), (2, 9), (4, 12), (3, 12), (1 << 20, 1 << 12), (1,) * 32]
DTYPES: list[Any] = ["f4", "f8", "f2", "i8", "u1", "S3", "c8", "(2,)f4", [("x", "f4")], ">f4"]
STORED: list[dict[str, Any]] = [{}, {"compression": "gzip"}, {"chunks": True}, {"fletcher32": True}]


def play(case: Any) -> None:
    """Read a file of the case's own."""
    form = case.one(*FORMS)
    mutant = case.one(*MUTATORS)(case.random, form)
    with folder() as path:
        path.write_bytes(mutant)
        case.call(f"from_keras of {form}, {len(mutant)} bytes", lambda: check(path))


def check(path: Path) -> None:
    """AssertionError for a file that is neither read nor refused as it should be."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        told = _told(path)
        os.write(writing, told.encode(errors="replace")[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) != signal.SIGXCPU, "it takes too long"
        told = refused(lambda: rk.from_keras(path, NAME))
        assert "the HDF5 library fails on it" in told, told or "the process alone crashed"
    else:
        assert not told.startswith("Traceback"), told


def _told(path: Path) -> str:
    """In the forked process: nothing, an error's text, or the trace of one that it must not be."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where the library says what it thinks

    def read(path: Any, name: str | None) -> keras_files.Layer:
        return keras_files.unpacked(os.fspath(path), keras_files.packed(os.fspath(path), name))

    try:
        with mock.patch.object(from_keras_module, "read_layer", read):
            return refused(lambda: rk.from_keras(path, NAME))
    except BaseException:
        return traceback.format_exc()


def refused(call: Callable[[], Any]) -> str:
    """The text of a refusal, nothing where there is none."""
    try:
        call()
    except ValueError as error:
        text = str(error)
        assert len(text) < 3000, "its message is too long"
        assert text.isprintable(), "its message is a harm to a terminal"
        return text
    return ""


# -- good files, as Keras writes them -------------------------------------------------------------


def arrays(kind: str) -> list[Any]:
    rng, rows = np.random.default_rng(0), KINDS[kind] * UNITS
    bias = (2, rows) if kind == "GRU" else (rows,)
    shapes = ((INPUTS, rows), (UNITS, rows), bias)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def configuration(kind: str, both: bool) -> dict[str, Any]:
    config: dict[str, Any] = {"name": NAME, "units": UNITS, "activation": "tanh"}
    if kind != "SimpleRNN":
        config["recurrent_activation"] = "sigmoid"
    if kind == "GRU":
        config["reset_after"] = True
    layer = {"class_name": kind, "config": config}
    if both:
        around = {"name": NAME, "merge_mode": "concat", "layer": layer}
        layer = {"class_name": "Bidirectional", "config": around}
    return {"config": {"layers": [{"class_name": "InputLayer", "config": {"name": "x"}}, layer]}}


def group_of(kind: str, both: bool) -> str:
    """As Keras 3 names it in a file."""
    return "bidirectional" if both else {"SimpleRNN": "simple_rnn"}.get(kind, kind.lower())


def weights_file(group: str, kind: str, both: bool) -> bytes:
    """A ``.weights.h5`` of Keras 3."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for part in ("forward_layer/", "backward_layer/") if both else ("",):
            variables = file.create_group(f"layers/{group}/{part}cell/vars")
            for number, array in enumerate(arrays(kind)):
                variables.create_dataset(str(number), data=array)
        file.create_group(f"layers/{group}/vars")
    return content.getvalue()


def archive(config: bytes, weights: bytes) -> bytes:
    """A ``.keras`` file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        made.writestr("config.json", config)
        made.writestr("model.weights.h5", weights)
    return content.getvalue()


def legacy_file(kind: str, both: bool) -> bytes:
    """An ``.h5`` of Keras 2."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["model_config"] = json.dumps(configuration(kind, both)).encode()
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [NAME.encode()]
        group, names = root.create_group(NAME), []
        for part in ("forward", "backward") if both else ("one",):
            for number, array in enumerate(arrays(kind)):
                names.append(f"{part}/{number}:0")
                group.create_dataset(names[-1], data=array)
        group.attrs["weight_names"] = [name.encode() for name in names]
    return content.getvalue()


FORMS = ["weights", "archive", "legacy"]


@cache
def good(form: str, kind: str, both: bool) -> bytes:
    """A file, which is read; any change is made to such a one."""
    if form == "weights":
        content = weights_file(NAME, kind, both)
    elif form == "legacy":
        content = legacy_file(kind, both)
    else:
        config = json.dumps(configuration(kind, both)).encode()
        content = archive(config, weights_file(group_of(kind, both), kind, both))
    with folder() as path:
        path.write_bytes(content)
        layer = rk.from_keras(path, NAME)
    assert layer.bidirectional == both
    return content


def some(draw: random.Random, form: str) -> bytes:
    return good(form, draw.choice(list(KINDS)), draw.random() < 0.5)


# -- changes --------------------------------------------------------------------------------------


def damaged(draw: random.Random, form: str) -> bytes:
    """A few bytes changed, lost, doubled or put elsewhere."""
    changed = bytearray(some(draw, form))
    for _ in range(draw.choice((1, 1, 2, 5, 40))):
        place = draw.randrange(len(changed) + 1)
        kind = draw.randrange(8)
        if kind == 0:
            del changed[place : place + draw.choice((1, 8, 512))]
        elif kind == 1:
            changed[place:place] = changed[place : place + draw.choice((1, 8, 512))]
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            changed[place : place + 8] = draw.choice((b"\xff", b"\0")) * 8
        else:
            changed[place : place + 1] = bytes([draw.randrange(256)])
    return bytes(changed)


def described(draw: random.Random, form: str) -> bytes:
    """Another configuration."""
    kind, both = draw.choice(list(KINDS)), draw.random() < 0.5
    config = configuration(kind, both)
    for _ in range(draw.choice((1, 2, 4))):
        places = list(nodes(config))
        if not places:
            break
        holder, key = draw.choice(places)
        change = draw.randrange(4)
        if change == 0:
            del holder[key]
        elif change == 1:
            holder[key] = draw.choice([*WORDS, *NUMBERS, *TEXTS])
        elif change == 2:
            there, name = draw.choice(places)
            holder[key] = json.loads(json.dumps(there[name]))
        else:
            holder[key] = draw.choice([[], {}, [holder[key]], {"config": holder[key]}])
    text = json.dumps(config).encode()
    if draw.random() < 0.1:
        text = draw.choice(TEXTS).encode(errors="replace")
    if form == "archive":
        return archive(text, weights_file(group_of(kind, both), kind, both))
    content = io.BytesIO(legacy_file(kind, both))
    with h5py.File(content, "r+") as file:
        file.attrs["model_config"] = np.bytes_(text[:60_000])
    return content.getvalue()


def rewritten(draw: random.Random, form: str) -> bytes:
    """Other groups, datasets and attributes, as the library itself writes them."""
    kind, both = draw.choice(list(KINDS)), draw.random() < 0.5
    content = io.BytesIO(
        weights_file(group_of(kind, both), kind, both) if form == "archive" else some(draw, form)
    )
    with h5py.File(content, "r+") as file:
        for _ in range(draw.choice((1, 2, 4))):
            names: list[str] = []
            file.visit(names.append)
            if not names:
                break
            try:
                _change(draw, file, draw.choice(names), draw.choice(names))
            except (ValueError, TypeError, KeyError, RuntimeError, OSError):
                continue  # the library does not write that
    if form != "archive":
        return content.getvalue()
    return archive(json.dumps(configuration(kind, both)).encode(), content.getvalue())


def _change(draw: random.Random, file: Any, name: str, other: str) -> None:
    kind = draw.randrange(9)
    if kind == 0:
        del file[name]
    elif kind == 1:
        file.move(name, f"{other}/{draw.choice(WORDS)}")
    elif kind == 2:
        link = draw.choice([h5py.SoftLink(other), h5py.ExternalLink("/dev/zero", "/"), file[other]])
        del file[name]
        file[name] = link
    elif kind == 3:
        holder = draw.choice([file, file[name]])
        for attribute in list(holder.attrs):
            value = draw.choice([*WORDS, *NUMBERS, [b"rnn"] * 1000, np.zeros((2, 2)), b"\xff"])
            holder.attrs[attribute] = value
    elif kind == 4:
        file[other].attrs["weight_names"] = [name.encode()] * draw.choice((1, 3, 6, 2000))
    else:
        del file[name]
        shape, dtype = draw.choice(SHAPES), draw.choice(DTYPES)
        if kind == 5:
            file[name] = h5py.Empty(dtype)
        elif kind == 6:
            layout = h5py.VirtualLayout((4, 12), "f4")
            layout[:] = h5py.VirtualSource(draw.choice(["/dev/zero", "."]), "x", (4, 12))
            file.create_virtual_dataset(name, layout)
        elif kind == 7:
            outside = [("/dev/zero", 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(name, (4, 12), "f4", external=outside)
        else:
            file.create_dataset(name, shape, dtype, **draw.choice(STORED))


def forms_of(change: Callable[..., bytes]) -> Callable[..., bytes]:
    """A change of configurations, which a file of weights alone has not."""
    return lambda draw, form: change(draw, "archive" if form == "weights" else form)


MUTATORS: list[Callable[..., bytes]] = [damaged, rewritten, rewritten, forms_of(described)]

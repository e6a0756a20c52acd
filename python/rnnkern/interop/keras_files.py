# SPDX-License-Identifier: Apache-2.0
"""Files that Keras wrote: one layer's class, configuration and weights. Nothing is unpickled."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern._files import open_regular
from rnnkern.interop.tensors import bfloat16_as_float32

_LONGEST_NOTE = 1 << 16  # bytes of what an archive says of itself
_LONGEST = 120.0  # seconds that reading a file may take
_SHRUNK = 1100  # times: no more do the compressions of HDF5 and of archives take numbers together
_WORDS = 1000  # letters of a message
_ARRAYS = 16  # that are read of a layer, which has six at most
# What h5py and zipfile raise of damaged files.
_DAMAGE: tuple[type[Exception], ...] = (OSError, KeyError, ValueError, TypeError, RuntimeError)
_DAMAGE += (EOFError, zipfile.BadZipFile, AttributeError, IndexError, OverflowError)
_UNREADABLE: tuple[type[Exception], ...] = (*_DAMAGE, subprocess.TimeoutExpired)

Layer = tuple[str, Mapping[str, Any], list[Array]]


class _RefusalError(ValueError):
    """A file's, which is named before it is raised."""


def read_layer(path: str | os.PathLike[str], name: str | None) -> Layer:
    """Of a layer by its name: its class ("" where the file does not say), configuration, weights.

    A process of its own reads the file, for damaged ones can crash the HDF5 library.

    Raises:
        ImportError: h5py is not installed.
        ValueError: the file is damaged, or has no such layer; the message names it.
        OSError: the file cannot be opened.

    """
    if importlib.util.find_spec("h5py") is None:
        raise ImportError("files of Keras need the h5py package: pip install 'rnnkern[interop]'")
    open_regular(path).close()
    command = [sys.executable, "-m", __name__, os.fspath(path), *([] if name is None else [name])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        reader = subprocess.run(
            command, env=environment, capture_output=True, timeout=_LONGEST, check=False
        )
        return unpacked(os.fspath(path), reader.stdout)
    except _UNREADABLE as error:
        if isinstance(error, _RefusalError):
            raise
        raise ValueError(
            f"{os.fspath(path)}: is no file of Keras', or damaged: the HDF5 library fails on it"
        ) from error


def unpacked(path: str, content: bytes) -> Layer:
    """What `packed` gave, in the process that asked for it."""
    found = np.load(io.BytesIO(content))
    described = json.loads(found["described"].tobytes())
    if "refusal" in described:
        raise _RefusalError(f"{path}: {described['refusal']}")
    arrays = [found[str(k)] for k in range(described["count"])]
    return described["kind"], described["config"], arrays


def packed(path: str, name: str | None) -> bytes:
    """A layer, or why there is none, as an archive of arrays."""
    described: dict[str, Any]
    arrays: list[Array] = []
    try:
        kind, config, arrays = _read(path, name)
        if not (
            isinstance(kind, str) and f"_{kind}".isidentifier() and isinstance(config, Mapping)
        ):
            raise _RefusalError(f"has a layer that is no class with a configuration: {kind!r}")
        described = {"kind": kind, "config": config, "count": len(arrays)}
    except _RefusalError as error:
        described = {"refusal": str(error)}
    except _DAMAGE as error:
        described = {"refusal": f"is no file of Keras', or damaged: {str(error)!r}"}
    if len(described.get("refusal", "")) > _WORDS:
        described["refusal"] = described["refusal"][:_WORDS] + " ..."
    named = {str(k): array for k, array in enumerate(arrays)}
    text = np.frombuffer(json.dumps(described).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, described=text, **named)  # type: ignore[arg-type, unused-ignore]
    return content.getvalue()


def main() -> None:
    """What the process does."""
    _, path, *name = sys.argv
    sys.stdout.buffer.write(packed(path, name[0] if name else None))


def _read(path: str, name: str | None) -> Layer:
    import h5py

    with open_regular(path) as file:
        if file.read(4) == b"PK\x03\x04":
            return _of_archive(h5py, file, name)
        file.seek(0)
        with h5py.File(file, "r") as content:
            if "model_weights" in content or "layer_names" in content.attrs:
                return _of_legacy(h5py, content, name)
            return _of_group(h5py, content, name)


def _of_archive(h5py: Any, file: Any, name: str | None) -> Layer:
    """A ``.keras`` file: a configuration, and an HDF5 file whose groups follow from it."""
    with zipfile.ZipFile(file) as archive:
        parts = [archive.getinfo(n) for n in ("config.json", "model.weights.h5")]
        if any(part.file_size > _SHRUNK * part.compress_size for part in parts):
            raise _RefusalError("has members that are larger than they can be")
        config = json.loads(archive.read(parts[0]))
        about: Any = {}
        if "metadata.json" in archive.namelist():
            about = json.loads(archive.open("metadata.json").read(_LONGEST_NOTE))
        content = io.BytesIO(archive.read(parts[1]))
    layers = config["config"]["layers"]
    found = _pick(((layer["config"]["name"], layer) for layer in layers), name)
    taken: Counter[str] = Counter()
    group = ""
    for layer in layers:
        key = _snake(layer["class_name"])
        group = f"layers/{key}_{taken[key]}" if taken[key] else f"layers/{key}"
        taken[key] += 1
        if layer is found:
            break
    with h5py.File(content, "r") as weights:
        arrays = _weights(h5py, _group(h5py, weights, group))
    return found["class_name"], {**found["config"], **_version(about)}, arrays


def _of_legacy(h5py: Any, content: Any, name: str | None) -> Layer:
    """An ``.h5`` file of a whole model, or of its weights alone, in the format of Keras 2."""
    root = _group(h5py, content, "model_weights") if "model_weights" in content else content
    names = [_text(n) for n in root.attrs["layer_names"]]
    described: Mapping[str, Any] = {}
    if "model_config" in content.attrs:
        config = json.loads(_text(content.attrs["model_config"]))["config"]
        layers = config["layers"] if isinstance(config, Mapping) else config
        described = {layer["config"]["name"]: layer for layer in layers}
    chosen = _pick(((n, n) for n in names), name)
    group = _group(h5py, root, chosen)
    weights = [_array(h5py, n, group[n]) for n in map(_text, group.attrs["weight_names"][:_ARRAYS])]
    if chosen in described:
        one = described[chosen]
        return one["class_name"], {**one["config"], **_version(content.attrs)}, weights
    return "", {}, weights


def _of_group(h5py: Any, content: Any, name: str | None) -> Layer:
    """A ``.weights.h5`` file of Keras 3: groups by classes, no configuration."""
    layers = _group(h5py, content, "layers")
    chosen = _pick(((n, n) for n in layers), name)
    return "", {}, _weights(h5py, _group(h5py, layers, chosen))


def _pick(named: Iterator[tuple[str, Any]], name: str | None) -> Any:
    """The layer of that name."""
    layers = dict(named)
    listed = ", ".join(map(repr, layers))
    if name is None:
        raise _RefusalError(f"has {listed}: name must say which")
    if name not in layers:
        raise _RefusalError(f"has no layer {name!r}, only {listed}")
    return layers[name]


def _weights(h5py: Any, group: Any, *, both: bool = True) -> list[Array]:
    """The arrays below a group of Keras 3, in Keras' order: the forward direction's first."""
    found: list[Array] = []
    if both:
        for key in ("forward_layer", "backward_layer"):
            if key in group:
                found += _weights(h5py, _group(h5py, group, key), both=False)
    for path in ("vars", "cell/vars"):
        if path in group:
            variables = _group(h5py, group, path)
            numbers = sorted(variables, key=int)[:_ARRAYS]
            found += [_array(h5py, f"{path}/{n}", variables[n]) for n in numbers]
    return found


def _group(h5py: Any, parent: Any, name: str) -> Any:
    group = parent[name]
    if not isinstance(group, h5py.Group):
        raise _RefusalError(f"has {name!r}, which is no group")
    return group


def _array(h5py: Any, name: str, dataset: Any) -> Array:
    """A dataset that lies in the file, and is no larger than that allows."""
    bits = isinstance(dataset, h5py.Dataset) and dataset.dtype == "V2"  # as bfloat16 is written
    if not isinstance(dataset, h5py.Dataset) or not (bits or dataset.dtype.kind == "f"):
        raise _RefusalError(f"has {name!r}, which is no array of floats")
    most = dataset.file.id.get_filesize()
    if dataset.id.get_create_plist().get_nfilters():
        most *= _SHRUNK
    if not dataset.size or dataset.nbytes > most or dataset.is_virtual or dataset.external:
        raise _RefusalError(
            f"has {name!r} of shape {dataset.shape}, which is not in the file itself"
        )
    array: Array = np.asarray(dataset[()])
    return bfloat16_as_float32(array.view(np.uint16)) if bits else array


def _version(notes: Mapping[str, Any]) -> dict[str, str]:
    """That of the Keras that wrote a file, for the configurations of its layers."""
    return {"keras_version": _text(notes["keras_version"])} if "keras_version" in notes else {}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _snake(name: str) -> str:
    """As Keras 3 names the groups of its files after classes."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


if __name__ == "__main__":
    main()

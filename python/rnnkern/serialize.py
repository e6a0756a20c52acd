# SPDX-License-Identifier: Apache-2.0
"""Saving and loading layers, models and optimizers: one safetensors file, nothing ever unpickled.

A file's metadata tell the class and its constructor's arguments, from which ``load`` builds the
object anew. Models saved by name are of the class ``dict``, whose arguments are each one's class
and arguments.

``save`` has the header that it made read by the code of ``load`` before it writes anything, and
``load`` holds the header against the models' shapes before it takes memory for an array: both
refuse the same.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rnnkern._checks import Array, array_text, choice, on_gpu
from rnnkern._files import open_regular, replace
from rnnkern._safetensors import (
    CLASS,
    CONFIG,
    LONGEST_HEADER,
    SUM,
    Arrays,
    Entry,
    FormatError,
    digest_of,
    header_of,
    header_text,
    parsed,
    parsed_json,
    read_arrays,
    read_header,
    refusal,
)
from rnnkern.cells import layer_classes, step_classes
from rnnkern.devices import get_device, to_host
from rnnkern.layers.dropout import Dropout
from rnnkern.layers.embedding import Embedding
from rnnkern.layers.layer_norm import LayerNorm
from rnnkern.layers.linear import Linear
from rnnkern.layers.parameters import undrawn
from rnnkern.layers.stack import Stack
from rnnkern.models.model import Model
from rnnkern.models.seq2seq import Seq2Seq
from rnnkern.training.optim import Optimizer

__all__ = ["Checkpoint", "FormatError", "load", "load_checkpoint", "save"]

_NOTE = "note."  # what keys of further strings begin with in the metadata
_SEVERAL = "dict"  # the class of models by name
_PART, _PART_CONFIG = "part", "config"  # of a model's part among its arguments
# Prefixes of the arrays that are not a single model's.
_MODELS, _OPTIMIZER, _OPTIMIZERS, _EXTRA = "models.", "optimizer.", "optimizers.", "extra."


class Checkpoint(NamedTuple):
    """What ``load_checkpoint`` found in a file.

    Attributes:
        model: The layer or model that was saved, or a dict of them by name.
        optimizer: What the optimizer's ``load_state_dict`` takes, or a dict of that by the
            optimizers' names; ``None`` if none was saved.
        extra: The further arrays by name, NumPy's.
        notes: The further strings by name.

    Example:
        >>> lstm = rk.LSTM(3, 4, seed=0)
        >>> adam = rk.Adam(lstm)
        >>> rk.save("run.safetensors", lstm, optimizer=adam, notes={"epoch": "3"})
        >>> checkpoint = rk.load_checkpoint("run.safetensors")
        >>> checkpoint.notes["epoch"], sorted(checkpoint.optimizer)[0]
        ('3', 'first.bias_l0')

    """

    model: Any
    optimizer: Any
    extra: Arrays
    notes: dict[str, str]

    def __repr__(self) -> str:
        """What is there, without the numbers."""
        parts = [f"model={self.model!r}"]
        if self.optimizer is not None:
            parts.append(f"optimizer={{{', '.join(self.optimizer)}}}")
        if self.extra:
            arrays = (f"{name}: {array_text(array)}" for name, array in self.extra.items())
            parts.append(f"extra={{{', '.join(arrays)}}}")
        if self.notes:
            parts.append(f"notes={{{', '.join(self.notes)}}}")
        return f"Checkpoint({', '.join(parts)})"


def save(
    path: str | os.PathLike[str],
    model: Any,
    *,
    optimizer: Optimizer | Mapping[str, Optimizer] | None = None,
    extra: Mapping[str, Array] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write what one program trains to one file. It does not say on what device the models were.

    Everything is checked before anything is written, and the file appears whole or not at all: it
    is written beside ``path`` and then takes its place, so an error or a crash leaves the file that
    was there before. Links are followed; mode and, where allowed, owner of a replaced file stay.
    What killed processes left unfinished in its directory is removed.

    Args:
        path: The file to write or to replace.
        model: A layer or model of this package, or a mapping of names without dots to those.
        optimizer: An optimizer whose state to keep, or a mapping of names without dots to those.
        extra: Further arrays of any device to keep, float32, float64 or int64, by name.
        notes: Further strings to keep, by name; 16 MiB at most, as JSON.

    Raises:
        TypeError: A model is of another class, an array of another dtype, a note no string.
        ValueError: Two models share an array, a name cannot be one, the notes are too long.
        OSError: ``path`` is no regular file, or cannot be written.

    Example:
        >>> layers = {"lstm": rk.LSTM(3, 4), "head": rk.Linear(4, 2)}
        >>> rk.save("run.safetensors", layers)
        >>> sorted(rk.load("run.safetensors"))
        ['head', 'lstm']

    """
    classes = _classes()
    for one in _each(model):
        if classes.get(type(one).__name__) is not type(one):
            raise TypeError(
                f"model must be one of {', '.join(classes)} or a dict of them, got "
                f"{type(one).__name__}"
            )
    for one in [] if optimizer is None else _each(optimizer):
        if not isinstance(one, Optimizer):
            raise TypeError(
                "optimizer must be an rnnkern optimizer or a dict of them, got "
                f"{type(one).__name__}"
            )
    models = _by_prefix("model", model, _MODELS, "")
    arrays = {
        prefix + name: param for prefix, one in models.items() for name, param in one.params.items()
    }
    shared = {id(array): name for name, array in arrays.items()}
    for name, array in arrays.items():
        if shared[id(array)] != name:
            raise ValueError(
                f"model holds one array twice, as {name.removeprefix(_MODELS)} and "
                f"{shared[id(array)].removeprefix(_MODELS)}; loaded models would share nothing"
            )
    if optimizer is not None:
        for prefix, one in _by_prefix("optimizer", optimizer, _OPTIMIZERS, _OPTIMIZER).items():
            arrays.update({prefix + name: array for name, array in one.state_dict().items()})
    for name, value in (extra or {}).items():
        arrays[_EXTRA + _text("a name in extra", name)] = _array(f"extra[{name!r}]", value)
    metadata = _described(models)
    for name, note in (notes or {}).items():
        metadata[_NOTE + _text("a name in notes", name)] = _text(f"notes[{name!r}]", note)

    header, arrays = header_of(arrays, metadata)
    text = header_text(header)
    if len(text) > LONGEST_HEADER:
        raise ValueError(
            f"notes and names must take at most {LONGEST_HEADER} bytes as JSON, got {len(text)}"
        )
    device = next((one.device for one in models.values() if one.device != "cpu"), "cpu")
    try:
        entries, _ = parsed(parsed_json("a header", text), sum(a.nbytes for a in arrays.values()))
        _empty_models(entries, metadata, device)
    except FormatError as error:
        raise ValueError(
            f"what was given could not be loaded again, for the file {error}"
        ) from None

    def write(file: BinaryIO) -> None:
        digest = digest_of(header)
        file.seek(8 + len(text))
        for array in arrays.values():
            # A copy: what is written is what was added up, whatever another thread does.
            piece = np.ascontiguousarray(to_host(array), array.dtype.newbyteorder("<")).tobytes()
            digest.update(piece)
            file.write(piece)
        header["__metadata__"][SUM] = digest.hexdigest()
        file.seek(0)
        file.write(len(text).to_bytes(8, "little") + header_text(header))

    replace(path, write)


def load(path: str | os.PathLike[str], *, device: str = "cpu") -> Any:
    """The layer, model or dict of them that ``save`` wrote to ``path``, on the device asked for.

    Raises:
        FormatError: The file is not what ``save`` wrote, or holds a model that the device cannot
            run; the message names it and says why.
        ValueError: The device cannot be used.
        OSError: The file cannot be read.

    Example:
        >>> lstm = rk.LSTM(3, 4)
        >>> rk.save("model.safetensors", lstm)
        >>> rk.load("model.safetensors").params == lstm.params
        True

    """
    return load_checkpoint(path, device=device).model


def load_checkpoint(path: str | os.PathLike[str], *, device: str = "cpu") -> Checkpoint:
    """All that ``save`` wrote to ``path``: models, optimizers' state, arrays and notes.

    A run that was saved with its optimizer goes on bit for bit: build the optimizer anew on
    ``model.params`` and give its ``load_state_dict`` what is in ``optimizer``. The memory that it
    takes goes by the file's size, whatever the file says.

    Raises:
        FormatError, ValueError, OSError: As ``load``.

    Example:
        >>> lstm = rk.LSTM(3, 4)
        >>> adam = rk.Adam(lstm)
        >>> rk.save("run.safetensors", lstm, optimizer=adam)
        >>> checkpoint = rk.load_checkpoint("run.safetensors")
        >>> again = rk.Adam(checkpoint.model)
        >>> again.load_state_dict(checkpoint.optimizer)

    """
    get_device(device)
    try:
        with open_regular(path) as file:
            entries, metadata, digest = read_header(file)
            models = _empty_models(entries, metadata, device)
            arrays = read_arrays(file, entries, digest)
        if digest.hexdigest() != metadata[SUM]:
            raise FormatError("was altered: its checksum does not match")
        for prefix, model in models.items():
            model.params.fill({name: arrays.pop(prefix + name) for name in model.params})
        return Checkpoint(
            _by_name(models, _MODELS, ""),
            _optimizer_states(arrays),
            {name.removeprefix(_EXTRA): array for name, array in arrays.items()},
            {
                key.removeprefix(_NOTE): note
                for key, note in metadata.items()
                if key.startswith(_NOTE)
            },
        )
    except FormatError as error:
        raise refusal(path, str(error)) from error


def _classes() -> dict[str, type[Any]]:
    """What can be saved, by the name that a file tells."""
    others = (Stack, Linear, Embedding, Dropout, LayerNorm, Model, Seq2Seq)
    return {**layer_classes(), **step_classes(), **{kind.__name__: kind for kind in others}}


# -- what was given -------------------------------------------------------------------------------


def _each(given: Any) -> Iterable[Any]:
    """What was given, or what the mapping holds that was."""
    return given.values() if isinstance(given, Mapping) else [given]


def _by_prefix(what: str, given: Any, several: str, single: str) -> dict[str, Any]:
    """Objects by the prefix of their arrays' names; ``given`` is one, or a mapping of names."""
    if not isinstance(given, Mapping):
        return {single: given}
    if not given:
        raise ValueError(f"{what} must hold at least one, got an empty mapping")
    for name in given:
        if not _text(f"a name in {what}", name) or "." in name:
            raise ValueError(f"a name in {what} must have letters and no dot, got {name!r}")
    return {f"{several}{name}.": one for name, one in given.items()}


def _by_name(made: Mapping[str, Any], several: str, single: str) -> Any:
    """The inverse of ``_by_prefix``."""
    if made.keys() == {single}:
        return made[single]
    return {prefix.removeprefix(several)[:-1]: one for prefix, one in made.items()}


def _text(what: str, value: Any) -> str:
    """``value``, which must be a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be Unicode without lone surrogates") from None
    return value


def _array(what: str, value: Any) -> Array:
    """``value`` as an array of any device."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{what} must have no mask: a file keeps none")
    array: Array = value if on_gpu(value) else np.asarray(value)
    return array


def _described(models: Mapping[str, Any]) -> dict[str, str]:
    """The metadata that tell classes and constructors' arguments."""
    described = {
        prefix: (type(model).__name__, _written(model.config())) for prefix, model in models.items()
    }
    made = _by_name(described, _MODELS, "")
    name, config = (_SEVERAL, made) if isinstance(made, dict) else made
    return {CLASS: name, CONFIG: json.dumps(config, sort_keys=True)}


def _written(value: Any) -> Any:
    """Constructors' arguments as JSON has them: what a model is made of as class and config."""
    if isinstance(value, dict):
        written = {name: _written(item) for name, item in value.items()}
        return {**written, "device": "cpu"} if "device" in written else written
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value]
    if _classes().get(type(value).__name__) is type(value):
        return {_PART: type(value).__name__, _PART_CONFIG: _written(value.config())}
    return value


# -- what a file says, checked before it is trusted -----------------------------------------------


def _empty_models(
    entries: Mapping[str, Entry], metadata: Mapping[str, str], device: str
) -> dict[str, Any]:
    """Models without values, by the prefix of their arrays, all of which ``entries`` has."""
    models = {}
    rest = dict(entries)
    for prefix, name, config in _kinds(metadata):
        models[prefix] = model = _empty_model(name, config, device, len(rest))
        for key, (shape, dtype) in model.params.specs().items():
            entry = rest.pop(prefix + key, None)
            if entry is None:
                raise FormatError(f"lacks the array {prefix}{key}")
            if (entry.shape, entry.dtype) != (shape, dtype):
                raise FormatError(
                    f"has {prefix}{key} as {entry.dtype} of shape {entry.shape}, "
                    f"expected {dtype} of shape {shape}"
                )
    for name in rest:
        if not name.startswith((_EXTRA, _OPTIMIZER, _OPTIMIZERS)):
            raise FormatError(f"has the unknown array {name}")
    return models


def _kinds(metadata: Mapping[str, str]) -> Iterator[tuple[str, Any, Any]]:
    """Of each model the prefix, the class's name and the configuration, as yet unchecked."""
    config = parsed_json("a configuration", metadata[CONFIG].encode())
    if metadata[CLASS] != _SEVERAL:
        yield "", metadata[CLASS], config
        return
    if not isinstance(config, dict):
        raise FormatError("has models that are not named")
    try:
        named = _by_prefix("model", config, _MODELS, "")
    except ValueError as error:
        raise FormatError(f"has models whose names are none: {error}") from error
    for prefix, pair in named.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise FormatError(f"has {prefix[:-1]} that is not a class and its configuration")
        yield prefix, *pair


def _empty_model(name: Any, config: Any, device: str, arrays: int) -> Any:
    """A model of that class and configuration, without values, for at most so many arrays."""
    if not isinstance(name, str) or name not in _classes():
        raise FormatError(f"holds a {name!r}, which this version does not know")
    if not isinstance(config, dict):
        raise FormatError(f"holds a {name} that cannot be built: its arguments are not named")
    layers = config.get("num_layers")
    if isinstance(layers, int) and layers > arrays:
        raise FormatError(f"lacks arrays: it has {arrays}, too few for num_layers={layers}")
    kind = _classes()[name]
    try:
        config = {key: _read(value, device, arrays) for key, value in config.items()}
        if "device" in inspect.signature(kind).parameters:
            config["device"] = device
        # As ``config()`` spells it: NumPy would have Python parse any other text.
        choice("dtype", config.get("dtype", "float32"), ("float32", "float64"))
        return undrawn(kind, config)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"holds a {name} that cannot be built: {error}") from error


def _read(value: Any, device: str, arrays: int) -> Any:
    """The inverse of ``_written``."""
    if isinstance(value, list):
        if len(value) > arrays:
            raise FormatError(f"lacks arrays: it has {arrays}, too few for {len(value)} parts")
        return [_read(item, device, arrays) for item in value]
    if isinstance(value, dict) and value.keys() == {_PART, _PART_CONFIG}:
        return _empty_model(value[_PART], value[_PART_CONFIG], device, arrays)
    return value


def _optimizer_states(arrays: Arrays) -> Any:
    """The optimizers' arrays, taken out of ``arrays``, as ``Checkpoint.optimizer`` has them."""
    states: dict[str, Arrays] = {}
    for name in list(arrays):
        if name.startswith(_OPTIMIZER):
            prefix = _OPTIMIZER
        elif name.startswith(_OPTIMIZERS):
            prefix = name[: name.find(".", len(_OPTIMIZERS)) + 1]
            if len(prefix) <= len(_OPTIMIZERS) + 1:
                raise FormatError(f"has {name}, which is no optimizer's")
        else:
            continue
        states.setdefault(prefix, {})[name.removeprefix(prefix)] = arrays.pop(name)
    if _OPTIMIZER in states and len(states) > 1:
        raise FormatError("has states of optimizers with names and of one without")
    return _by_name(states, _OPTIMIZERS, _OPTIMIZER) if states else None

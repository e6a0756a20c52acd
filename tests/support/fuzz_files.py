# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile files for ``load_checkpoint`` and the adder's ``Training.load``.

A file must be refused with FormatError or OSError, within memory of a few times its size, or it
must load: then what was loaded can be saved, and loads and saves again to the same bytes. The files
are saved models of every class, of several and with optimizers, and the adder's checkpoints; five
in seven are sealed anew after they were changed, so that their checksums are right.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern.adder import Adder, Settings, Training
from rnnkern.cells import CELLS, layer_classes
from rnnkern.training.optim import Optimizer

from support import files_of_0_1

MEMORY = 96 << 20  # bytes of address space that loading may add; the files have a few thousand
PEAK = 40  # bytes at once for a byte of the file: what Python makes of "[[],[],[]"
BASE = 1 << 18  # bytes beside those: Python's own, and a message's
ADDER = 1 << 20  # bytes of an adder beside its file: the table of pairs and the optimizer

NUMBERS: list[Any] = [0, -1, 1, 2, 3, 255, 2**31, 2**40, 2**63, 2**64 - 1, 10**400]
NUMBERS += [0.5, -0.0, 1e308, float("nan"), float("inf"), True, False, None]
PLAIN = ["", "x", "ü", "\0", "\U0001f600", "x" * 5000]  # what anybody may write
WORDS = ["float64", "float16", "F32", "F64", "I64", "BF16", "Seq2Seq", "dict", *layer_classes()]
WORDS += ["cuda", "bfloat16", "after", "object", "f4,f4", "O", "."]
JSONS = ["[" * 90_000, '{"a":' * 30_000, "[[]]", '"\\ud800"', '{"a":1,"a":1}', "9" * 5000]
JSONS += ["NaN", "1e999", "{}", "[]", "null", "7"]
TEXTS = ["\ud800", *PLAIN, *WORDS, *JSONS]
NAMES = ["weight", "bias", "models.a.weight", "extra.x", "extra.run", "optimizer.steps"]
NAMES += ["optimizer.", "optimizers.a.steps", "optimizers.a.", "optimizers.", "optimizers..x"]
NAMES += ["__metadata__", "note.", "rnnkern.class", "seed", "device", "cell_options", "num_layers"]
NAMES += ["hidden_size", "\ud800", *PLAIN]


def play(case: Any) -> None:
    """Check a file of the case's own."""
    content, other = case.one(*bases()), case.one(*bases())
    change = case.one(*MUTATORS)
    mutant = change(case.random, content, other)

    def check() -> None:
        again = loaded(path)
        if change is harmless:
            assert again is not None, "a good file was refused"
        elif change is not hostile:
            assert again in (None, content, other), "a damage was not noticed"

    with folder() as path, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "dropout=", UserWarning)  # the layer's own advice
        path.write_bytes(mutant)
        case.call(f"load_checkpoint of a file, {change.__name__}, of {len(mutant)} bytes", check)


@contextmanager
def folder() -> Iterator[Path]:
    """A path for a file; where memory can hold it, writing waits for no disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
        yield Path(made) / "file"


@cache
def bases() -> list[bytes]:
    """The files that the others are made of; from here on, loading may add `MEMORY` to them."""
    with folder() as path:
        made = []
        for content in good_files(path):
            path.write_bytes(content)
            again = loaded(path)  # an earlier version's, with what has come to be written since
            assert again is not None, "a good file was refused"
            path.write_bytes(again)
            assert loaded(path) == again, "a good file was saved as another"
            made.append(again)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return made


def good_files(path: Path) -> list[bytes]:
    """As ``save`` writes them to ``path``, and as version 0.1 wrote them."""
    layers: list[Any] = [
        *(cell.build(2, 3, seed=0) for cell in CELLS.values()),
        rk.RNN(2, 3, 2, nonlinearity="relu", bidirectional=True, dtype="float64", seed=0),
        lstm := rk.LSTM(2, 3, batch_first=True, forget_bias=1.0, seed=0),
        head := rk.Linear(2, 3, seed=0),
        rk.Seq2Seq(3, 4, 2, bos=0, eos=1, cell="GRU", cell_options={"reset": "after"}, seed=0),
    ]
    made = [files_of_0_1.content(files_of_0_1.LSTM), files_of_0_1.content(files_of_0_1.HALF)]

    def keep() -> None:
        made.append(path.read_bytes())

    for layer in layers:
        rk.save(path, layer)
        keep()
    extra: dict[str, Any] = {"a": np.zeros((2, 0)), "b": np.arange(3), "c": np.ones(2, np.float32)}
    adam, sgd = rk.Adam(lstm.params), rk.SGD(head.params, 0.1, momentum=0.9)
    rk.save(path, head, optimizer=sgd, extra=extra, notes={"why": "für später"})
    keep()
    both = {"lstm": lstm, "head": head}
    rk.save(path, both, optimizer={"adam": adam, "sgd": sgd}, extra=extra, notes={"a": "b"})
    keep()
    for hidden in (1, 3):
        training = Training(
            Adder(Settings(digits=1, hidden=hidden, batch=4, share=0.5, cell="rnn"))
        )
        training.advance()
        training.report()
        training.save(path)
        keep()
    return made


# -- mutants --------------------------------------------------------------------------------------


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A good file's header and its arrays' bytes."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def sealed(header: Any, data: bytes) -> bytes:
    """A file of these, its checksum made to fit where it can."""
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict):
        metadata.pop("rnnkern.sha256", None)
        text = json.dumps(header, sort_keys=True).encode()
        metadata["rnnkern.sha256"] = hashlib.sha256(text + data).hexdigest()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def damaged(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Bits flipped, parts lost, doubled, zeroed or of another file."""
    kind = rng.randrange(6)
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice([1, 4, 8, 64, len(content)]))
    if kind == 0:
        changed = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return content[:start]
    if kind == 2:
        return content[:start] + content[stop:]
    if kind == 3:
        return content[:stop] + content[start:]
    if kind == 4:
        return content[:start] + bytes(stop - start) + content[stop:]
    return content[:start] + other[rng.randrange(len(other)) :]


def rewritten(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Text put into the header that JSON's readers stumble over, the length made to fit."""
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    place = rng.choice([i for i, byte in enumerate(text) if byte in b'{}[],:"'] or [0])
    poison = rng.choice(
        [t.encode(errors="surrogatepass") for t in TEXTS] + [b"\xff", b"\xef\xbb\xbf"]
    )
    kind = rng.randrange(6)
    if kind == 0:
        text = text[:place] + poison + text[place:]
    elif kind == 1:
        text = text[: place + 1] + poison + text[place + 1 :]
    elif kind == 2:
        text = text.decode().encode(rng.choice(["utf-16", "utf-32", "utf-16-be", "utf-8-sig"]))
    elif kind == 3:
        text = text.rstrip()[:-1] + b", " + text.rstrip()[1:]
    elif kind == 4:
        text = text.replace(b", ", rng.choice([b",", b" ,\n\t", b",,"]))
    else:
        text = other[8 : 8 + int.from_bytes(other[:8], "little")]
    return len(text).to_bytes(8, "little") + text + data


def hostile(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A few changes of what the header says, sealed anew."""
    header, data = split(content)
    metadata = header["__metadata__"]
    inner = [key for key in ("rnnkern.config", "note.adder") if key in metadata]
    for key in inner:
        metadata[key] = json.loads(metadata[key])
    for _ in range(rng.randint(1, 3)):
        change(rng, header, split(other)[0])
    for key in inner:
        if isinstance(metadata, dict) and not isinstance(metadata.get(key, ""), str):
            metadata[key] = json.dumps(metadata[key])
    if rng.random() < 0.1:
        data = damaged(rng, data or b"\0", other)
    return sealed(header, data)


def change(rng: random.Random, header: Any, other: Any) -> None:
    """One change somewhere in ``header``."""
    places = list(nodes(header))
    if isinstance(header.get("__metadata__"), dict) and rng.random() < 0.7:
        places = list(nodes(header["__metadata__"])) or places  # few, but they decide most
    holder, key = rng.choice(places)
    value = holder[key]
    kind = rng.randrange(14)  # half of them put another value there
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(NAMES + list(holder))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(NAMES)] = rng.choice([value, *NUMBERS, *TEXTS])
    elif kind == 3 and type(value) is int:
        holder[key] = rng.choice([value + 1, value - 1, 2 * value, -value, value + 8])
    elif kind == 4:
        there, name = rng.choice(list(nodes(other)))
        holder[key] = there[name]
    elif kind == 5:
        there, name = rng.choice(places)
        holder[key] = json.loads(json.dumps(there[name]))
    elif kind == 6:
        nested: Any = []
        for _ in range(rng.choice([1, 10, 200])):
            nested = rng.choice([[nested], {"a": nested}])
        holder[key] = nested
    else:
        same = TEXTS if isinstance(value, str) else NUMBERS
        holder[key] = rng.choice(same if rng.random() < 0.8 else [*TEXTS, *NUMBERS])


def nodes(tree: Any) -> Any:
    """Every place below ``tree``: its holder and its key."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from nodes(tree[key])


def harmless(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Other values, notes and names, sealed anew: a file as ``save`` might have written it."""
    header, data = split(content)
    data = bytes(rng.randrange(256) for _ in data)
    if rng.random() < 0.5:
        header["__metadata__"]["note." + rng.choice(PLAIN)] = rng.choice(PLAIN)
    return sealed(header, data)


MUTATORS: list[Callable[[random.Random, bytes, bytes], bytes]] = [
    damaged,
    rewritten,
    hostile,
    hostile,
    hostile,
    hostile,
    harmless,
]


# -- what must hold -------------------------------------------------------------------------------


class Kept(Optimizer):
    """A state without its optimizer, to be saved again."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._kept = state

    def state_dict(self) -> dict[str, Any]:
        """The state it was given."""
        return self._kept


def saved(path: Path, found: rk.Checkpoint) -> bytes:
    """The bytes of the file that a checkpoint is saved as."""
    optimizer = found.optimizer
    if optimizer is not None and all(isinstance(s, dict) for s in optimizer.values()):
        optimizer = {name: Kept(state) for name, state in optimizer.items()}
    elif optimizer is not None:
        optimizer = Kept(optimizer)
    rk.save(path, found.model, optimizer=optimizer, extra=found.extra, notes=found.notes)
    return path.read_bytes()


def bounded(load: Callable[[Path], Any], path: Path, allowed: int) -> Any:
    """What ``load`` finds, ``None`` if it refuses; it must do with the memory allowed."""
    tracemalloc.start()
    try:
        return load(path)
    except (rk.FormatError, OSError) as error:
        if len(str(error)) > 2000 or not str(error).isprintable():
            raise AssertionError("its message is too long, or a harm to a terminal") from error
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= allowed, f"{peak} bytes for a file of {path.stat().st_size}"


def loaded(path: Path) -> bytes | None:
    """What the loaded file is saved as, None if it is refused; AssertionError for all else."""
    try:
        return promised(path)
    except Exception as error:
        raise AssertionError("a file may be refused with FormatError or OSError") from error


def promised(path: Path) -> bytes | None:
    """As `loaded`, with the error itself if something is not as promised."""
    size = path.stat().st_size
    found = bounded(rk.load_checkpoint, path, PEAK * size + BASE)
    training = bounded(Training.load, path, PEAK * size + BASE + ADDER)
    if found is None:
        assert training is None
        return None
    again = path.with_name("again")
    content = saved(again, found)
    assert saved(again, rk.load_checkpoint(again)) == content
    if training is not None:
        training.save(again)
        first = again.read_bytes()
        Training.load(again).save(again)
        assert again.read_bytes() == first
    return content

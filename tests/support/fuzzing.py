# SPDX-License-Identifier: Apache-2.0
"""Hostile calls at random, in a process of their own, so that a crash is told with what led to it.

A subject is a module, ``fuzz_<name>`` here, with a function ``play(case)`` that makes one call, or
a few that belong together. Everything random comes from ``case``, whose seed and number bring it
back:

    tools/fuzz api --minutes 10
    tools/fuzz core --seed 7 --case 1234

A crash, a hang or a broken promise ends the run with the subject, seed and case and the last call.
Plain random numbers rather than hypothesis: whatever shrinks a case would die with it.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from support.processes import environment
from support.reference import Array

SUBJECTS = ("api", "core", "device", "files", "keras", "pieces")
REFUSALS = (TypeError, ValueError, MemoryError)  # what a call may answer with
_GUARD = 256  # bytes around every array
_HANG = 60.0  # seconds that no case takes
_MEMORY = 1 << 30  # bytes more than at its beginning that a process may have

T = TypeVar("T")


class BrokenPromiseError(AssertionError):
    """A promise that was not kept."""


class _Given(NamedTuple):
    name: str
    view: Callable[[Array], Array]  # of the buffer, or of a copy of it
    buffer: Array
    before: Array
    written: bool


class Case:
    """One case's random numbers, its arrays between guard bands, and its calls written down."""

    def __init__(self, subject: str, seed: int, number: int, note: Callable[[str], None]) -> None:
        self.random = random.Random(f"{subject} {seed} {number}")
        self.numbers = np.random.default_rng(self.random.getrandbits(64))
        self._note = note
        self._given: list[_Given] = []

    def one(self, *options: T) -> T:
        """One of the options."""
        return self.random.choice(options)

    def chance(self, share: float) -> bool:
        """True in that share of cases."""
        return self.random.random() < share

    def array(
        self,
        name: str,
        values: Any,
        *,
        written: bool = False,
        layouts: tuple[str, ...] = ("plain",),
    ) -> Array:
        """The values between guard bands; unless `written`, no call may change them."""
        values = np.asarray(values)
        buffer = np.full(2 * _GUARD + 4 * values.nbytes + 64, 0xA5, np.uint8)
        layout = self.one(*layouts) if values.size else "plain"
        begin = _GUARD - (buffer.ctypes.data + _GUARD) % 64 + 64
        view = _placed(values.shape, values.dtype, layout, begin)
        view(buffer)[...] = values
        self._given.append(_Given(name, view, buffer, buffer.copy(), written))
        return view(buffer)

    def call(self, text: str, function: Callable[[], T]) -> T | None:
        """What the function gives, None where it refuses; then every guard band is looked at."""
        self._note(f"{text} of " + ", ".join(f"{g.name}={_seen(g)}" for g in self._given))
        try:
            return function()
        except REFUSALS:
            return None
        finally:
            self.check(text)

    def release(self) -> None:
        """The arrays given so far are looked at no more."""
        self._given.clear()

    def check(self, text: str) -> None:
        """Nothing was written but the elements of what may be written."""
        for given in self._given:
            allowed = given.before
            if given.written:
                allowed = given.before.copy()
                given.view(allowed)[...] = given.view(given.buffer)
            if not np.array_equal(allowed, given.buffer):
                raise BrokenPromiseError(
                    f"{text} wrote memory that is not its own, at {given.name}"
                )


def finite(what: str, *arrays: Any) -> None:
    """Numbers that follow from finite ones are finite."""
    for array in arrays:
        if array is not None and not np.all(np.isfinite(np.asarray(array))):
            raise BrokenPromiseError(f"{what} is not finite")


# What `layouts` may name: the same elements, elsewhere in memory.
LAYOUTS = ("plain", "padded", "swapped", "spread", "reversed", "every other", "unaligned")


def _placed(
    shape: tuple[int, ...], dtype: np.dtype[Any], layout: str, begin: int
) -> Callable[[Array], Array]:
    inner = list(shape)
    if layout == "padded" and shape:
        inner[-1] += 3
    elif layout == "swapped" and len(shape) > 1:
        inner[0], inner[1] = inner[1], inner[0]
    elif layout == "spread" and shape:
        inner[0] *= 2
    elif layout == "every other" and shape:
        inner[-1] *= 2
    size = int(np.prod(inner)) * dtype.itemsize

    def view(buffer: Array) -> Array:
        first = begin + (layout == "unaligned")
        whole: Array = buffer[first : first + size].view(dtype).reshape(inner)
        if layout == "padded" and shape:
            whole = whole[..., 2:-1]
        elif layout == "swapped" and len(shape) > 1:
            whole = whole.swapaxes(0, 1)
        elif layout == "spread" and shape:
            whole = whole[::2]
        elif layout == "reversed" and shape:
            whole = whole[::-1]
        elif layout == "every other" and shape:
            whole = whole[..., ::2]
        return whole

    return view


def _seen(given: _Given) -> str:
    array = given.view(given.buffer)
    return f"{array.dtype.str}{array.shape} strides {array.strides}"


# --- One process plays, another watches -----------------------------------------------------------


def _play(subject: str, seed: int, first: int, seconds: float, log: Path) -> None:
    """Case after case; in `log` always the last case's number and call."""
    module = f"support.fuzz_{subject}" if subject in SUBJECTS else subject
    play = importlib.import_module(module).play
    _limit_memory()
    end = time.monotonic() + seconds
    with log.open("wb", buffering=0) as file:
        for number in itertools.count(first):
            faulthandler.dump_traceback_later(_HANG, exit=True)

            def note(text: str, number: int = number) -> None:
                file.truncate(0)
                os.pwrite(file.fileno(), f"{number}\n{text}\n".encode(), 0)

            note("its beginning")
            with np.errstate(all="ignore"):
                play(Case(subject, seed, number, note))
            if time.monotonic() >= end:
                return


def _limit_memory() -> None:
    """Sizes that take all memory are a MemoryError, and soon."""
    status = Path("/proc/self/status").read_text()
    used = int(re.search(r"VmSize:\s+(\d+) kB", status).group(1)) << 10  # type: ignore[union-attr]
    if used < 1 << 36:  # a sanitizer's shadow memory takes more
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))


class Finding(NamedTuple):
    """What ended a run before its time."""

    subject: str
    seed: int
    case: int
    last_call: str
    ending: str

    def __str__(self) -> str:
        return (
            f"{self.ending}\nlast call: {self.last_call}\n"
            f"again: tools/fuzz {self.subject} --seed {self.seed} --case {self.case}"
        )


def fuzz(subject: str, seconds: float, seed: int, first: int = 0) -> tuple[int, Finding | None]:
    """The number of the last case, and what was found, if anything."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-X", "faulthandler", "-m", "support.fuzzing", subject]
        command += ["--seed", str(seed), "--case", str(first), "--seconds", str(seconds)]
        command += ["--log", str(log)]
        child = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        number, _, call = log.read_text().partition("\n") if log.exists() else ("0", "", "none")
    if child.returncode == 0:
        return int(number), None
    ending = f"exit status {child.returncode}"
    if child.returncode < 0:
        ending = f"killed by {signal.Signals(-child.returncode).name}"
    ending += "\n" + "\n".join(child.stderr.splitlines()[-40:])
    return int(number), Finding(subject, seed, int(number), call.strip(), ending)


def main() -> int:
    """The command line of tools/fuzz."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description="Hostile calls at random.")
    parser.add_argument("subject", help="one of " + ", ".join(SUBJECTS) + ", or a module")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--case", type=int, default=None, help="play this one alone")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    if options.log is not None:
        try:
            _play(options.subject, seed, options.case, options.seconds, options.log)
        except Exception:
            traceback.print_exc()
            return 1
        return 0
    alone = options.case is not None
    print(f"{options.subject}, seed {seed}", flush=True)
    number, finding = fuzz(
        options.subject, 0.0 if alone else 60 * options.minutes, seed, options.case or 0
    )
    print(finding or f"case {number} was the last, and none found anything")
    return 1 if finding else 0


if __name__ == "__main__":
    sys.exit(main())

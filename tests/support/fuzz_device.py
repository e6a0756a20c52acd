# SPDX-License-Identifier: Apache-2.0
"""Hostile calls of ``rnnkern._emulation``: the bindings of a GPU's kernels, in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from support.emulation import emulated_kernels
from support.fuzz_core import STRIDED, Sizes, exchanged, mutated
from support.fuzzing import Case, finite

KERNELS: Any = emulated_kernels()
ZONES = ("zone_h", "zone_c")
OPTIONS = {"h_factors": "recurrent_dropout", "zone_h": "zoneout", "zone_c": "cell_zoneout"}
MODES = (None, None, "tfloat32", "bfloat16", "float16")


class Lies:
    """An array's interface with one fact exchanged."""

    def __init__(self, array: Any, name: str, fact: Any) -> None:
        self._owner = array
        self.__array_interface__ = {**array.__array_interface__, name: fact}


def lying(case: Case, value: Any) -> Any:
    """Like ``exchanged``, of arrays also what the interface says."""
    if not isinstance(value, np.ndarray) or case.chance(0.6):
        return exchanged(case, value)
    axes = value.ndim
    address = value.__array_interface__["data"][0]
    name, facts = case.one(
        ("typestr", ("<f2", "f", "", None, "<f-8", ">f4", "<f" + "9" * 30, "|V8", 3)),
        ("shape", ((), None, (-1,) * axes, (2**62,) * axes, "ab", (1.5,) * axes, (0,) * axes)),
        ("strides", ((), None, (2**62,) * axes, (-(2**63),) * axes, (3,) * axes, ("a",) * axes)),
        ("data", ((), None, (-1, False), (2**64, False), (address, "x"), (address,), b"1234")),
    )
    if name == "strides" and not value.flags.c_contiguous:
        # From where such an array begins, other strides lead to memory that is nobody's: no call
        # can tell that, and every one takes an interface's word for it.
        return exchanged(case, value)
    return Lies(value, name, case.one(*facts))


def call(s: Sizes, *, keep: bool) -> dict[str, Any]:
    """One strand of forward."""
    live = s.steps * s.batch
    return {
        "x": s.x(),
        "h": s.state("h"),
        "c": s.state("c"),
        **s.weights(),
        "reverse": s.case.chance(0.5),
        "y": s.zeros("y", s.steps, s.batch, s.units, layouts=STRIDED),
        "saved": s.zeros("saved", live, s.saved, s.units) if keep and s.saved else None,
        "cells": s.zeros("cells", live, s.units) if keep and s.states > 1 else None,
        "fresh_c": s.zeros("fresh_c", live, s.units) if keep and s.states > 1 else None,
        **drops(s),
    }


def drops(s: Sizes) -> dict[str, Any]:
    """What is dropped of a strand: now and then."""
    drawn = s.case.numbers.random((2, s.steps, s.batch, s.units)) < 0.3
    zones = {n: s.case.array(n, own, layouts=STRIDED) for n, own in zip(ZONES, drawn, strict=True)}
    arrays = {"h_factors": s.state("h_factors"), **zones}
    return {name: own if s.case.chance(0.3) else None for name, own in arrays.items()}


def play(case: Case) -> None:
    """One hostile call, or two that belong together."""
    s = Sizes(case)
    s.units, s.steps = min(s.units, 16), min(s.steps, 5)
    s.compute = case.one(*MODES) if s.dtype == "float32" else None
    which = case.one("forward", "forward", "forward", "matmul", "plan", "call")
    if which == "plan":
        spec = s.spec(layers=case.one(1, 2, 9))
        given = mutated(case, {"spec": spec, "steps": s.steps, "batch": s.batch, "training": True})
        case.call(which, lambda: KERNELS.plan(**given))
        return
    if which == "matmul":
        arrays = {
            "a": s.numbers("a", s.batch, s.inputs),
            "b": s.numbers("b", s.inputs, s.units),
            "out": s.zeros("out", s.batch, s.units),
            "bias": None,
        }
        rest: dict[str, Any] = {
            "transpose_a": False,
            "transpose_b": False,
            "accumulate": False,
            "stream": 0,
        }
        given = mutated(case, {**arrays, "compute": s.compute}, lying)
        case.call(which, lambda: KERNELS.matmul(**given, **rest))
        return
    lengths = None if case.chance(0.6) else [s.steps] * s.batch
    keep = case.chance(0.5)
    one = call(s, keep=keep)
    tokens = one["x"].ndim == 2
    shares = {option: 0.0 if one[name] is None else 0.3 for name, option in OPTIONS.items()}
    spec = s.spec(**shares)
    sizes = {"spec": spec, "steps": s.steps, "batch": s.batch, "lengths": lengths}
    sizes |= {"tokens": tokens, "layers": 1}
    if which == "call" or case.chance(0.1):
        sizes = mutated(case, sizes)
    sized = case.call("Call", lambda: KERNELS.Call(**sizes))
    if case.chance(0.02):
        sized = KERNELS.Call.__new__(KERNELS.Call)
        case.call("workspace", lambda: sized.forward_workspace)
    if sized is None or which == "call":
        return

    def room(which: str) -> Any:
        size = case.call("workspace", lambda: getattr(sized, which)) or 0
        size = min(size, 1 << 26)  # of sizes that were exchanged
        return case.array("workspace", np.zeros(size, np.uint8), written=True)

    one = mutated(case, one, lying)
    rest = mutated(case, {"strands": [one], "workspace": room("forward_workspace")}, lying)
    done = case.call("forward", lambda: [sized.forward(**rest, stream=0)])
    if done is None or not keep:
        return
    finite("y", one["y"])
    weights = {name: one[name] for name in ("weight_ih", "weight_hh")}
    gradients = {"d" + name: one[name] for name in (*weights, "bias", "bias_hn")}
    back: dict[str, Any] = {
        **{
            name: one[name] for name in ("x", "reverse", "y", "saved", "cells", "fresh_c", *OPTIONS)
        },
        **weights,
        "h_0": s.numbers("h_0", s.batch, s.units),
        "c_0": s.numbers("c_0", s.batch, s.units),
        "dy": s.numbers("dy", s.steps, s.batch, s.units, layouts=STRIDED),
        "dh": s.state("dh"),
        "dc": s.state("dc"),
        "dx": s.zeros("dx", s.steps, s.batch, s.inputs, layouts=STRIDED),
        **{k: None if v is None else s.zeros(k, *np.shape(v)) for k, v in gradients.items()},
    }
    back = mutated(case, back, lying)
    rest = {"strands": [back], "workspace": room("backward_workspace")}
    case.call("backward", lambda: sized.backward(**rest, stream=0))

# SPDX-License-Identifier: Apache-2.0
"""How the GPU's kernels would run a call, and what they refuse."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from support.cuda_kernels import (
    MODES,
    Case,
    check,
    spec,
)
from support.layers import WITH_PRODUCT


def test_plans_of_a_large_device(side: Any) -> None:
    """On a made-up device of the size of an H100."""
    side.device(multiprocessors=132, shared_bytes=227 << 10)
    for cell, units, batch, directions in itertools.product(
        WITH_PRODUCT, (1, 5, 64, 100, 256, 650, 768, 1024, 1500, 2048), (1, 4, 16, 128), (1, 2)
    ):
        for dtype, compute in MODES:
            layer = spec(cell, 64, units, directions=directions, dtype=dtype, compute=compute)
            plan = side.module.plan(layer, 64, batch, True)
            for way in (plan, plan["backward"]):
                blocks = way["groups"] * way["blocks_per_group"]
                assert 1 <= blocks * directions <= 132, way
                assert way["blocks_per_group"] * way["units_per_block"] >= units, way
                assert 1 <= way["groups"] <= batch, way
                assert way["shared_bytes"] <= 227 << 10, way
                assert way["workspace_bytes"] > 0, way
                if way["path"] != "streaming":
                    assert (way["path"] == "vector") == (batch <= 4), way
    narrow = spec("lstm", 64, 768, compute="bfloat16")
    assert side.module.plan(narrow, 64, 16, False)["path"] == "resident"
    # 64 MB of weights are more than 132 blocks can keep.
    streaming = side.module.plan(spec("lstm", 64, 2048), 64, 16, False)
    assert streaming["path"] == "streaming"
    assert "exceed shared memory" in streaming["reason"]
    # Where one group cannot use the device, the batch is split.
    narrow = spec("lstm", 64, 64, compute="bfloat16")
    assert side.module.plan(narrow, 64, 64, False)["groups"] > 1


def test_how_layers_share_launches(side: Any) -> None:
    """On a made-up device of the size of an H100, and on smaller ones."""

    def plan(units: int, layers: int, compute: str | None = "float16") -> dict[str, Any]:
        layer = spec("lstm", 64, units, layers=layers, compute=compute)
        made: dict[str, Any] = side.module.plan(layer, 256, 32, True)
        return made

    side.device(multiprocessors=132, shared_bytes=227 << 10)
    for layers, launches in ((1, [1]), (2, [2]), (3, [3]), (4, [4])):
        for way in (plan(256, layers), plan(256, layers)["backward"]):
            assert way["layers_per_launch"] == launches, way
            assert way["groups"] * way["blocks_per_group"] * layers <= 132, way
            assert way["path"] == "resident", way
    assert "reason" in plan(256, 1)
    assert re.search(
        r"^wavefronts, by the estimate \d\.\d\d times as fast as a launch for each layer; "
        r"2 layers as a wavefront, each with \d+ groups of",
        plan(256, 2)["reason"],
    )
    many = plan(256, 9)["layers_per_launch"]
    assert sum(many) == 9
    assert 3 <= len(many) <= 4
    # Two layers of this size cannot both keep their weights in shared memory.
    large = plan(1024, 2)
    assert large["layers_per_launch"] == [1, 1]
    assert large["reason"].startswith("a launch for each layer: by the estimate wavefronts take 1.")
    assert plan(1024, 2)["path"] == "resident"
    # Where each step is a launch, the layers cannot work at once.
    side.device(multiprocessors=132, chunk_bytes=1)
    assert plan(256, 3)["layers_per_launch"] == [1, 1, 1]
    side.device(multiprocessors=1)
    assert plan(64, 3)["layers_per_launch"] == [1, 1, 1]
    assert plan(64, 3)["reason"].startswith("a launch for each layer: no wavefront fits the device")
    side.device()
    both = side.module.plan(spec("lstm", 64, 64, layers=3, directions=2), 256, 32, False)
    assert both["layers_per_launch"] == [1, 1, 1]
    assert both["reason"].startswith("a launch for each layer: it takes both directions of")
    side.device(multiprocessors=1)
    split = spec("lstm", 64, 64, layers=3, compute="float16")
    assert side.module.layers_per_launch(split, 256, 32, False) == [1, 1, 1]


def test_more_rows_than_stand_in_shared_memory(side: Any) -> None:
    """Of one group; where the others stand in the batch is read from the schedule."""
    side.module.force_groups(1)
    try:
        check(side, Case("gru_after", 5, 4200, steps=3, inputs=2, lengths=(3, 1, 2) * 1400))
    finally:
        side.module.force_groups(0)


def test_groups_can_be_forced(side: Any) -> None:
    """To measure with; the plan's own choice is another."""
    side.device(multiprocessors=48)
    case = Case("lstm", 70, batch=9)
    size = (case.spec(), 5, 9, True)
    chosen = side.module.plan(*size)["groups"]
    try:
        for groups in (1, 2, 3):
            side.module.force_groups(groups)
            plan = side.module.plan(*size)
            assert (plan["groups"], plan["backward"]["groups"]) == (groups, groups)
            check(side, case)
        side.module.force_groups(50)
        with pytest.raises(ValueError, match="groups: no plan has 50 of them"):
            side.module.plan(*size)
    finally:
        side.module.force_groups(0)
    assert side.module.plan(*size)["groups"] == chosen


def test_devices(side: Any) -> None:
    (device, *_) = side.module.devices()
    assert device.keys() == {"name", "capability", "multiprocessors", "memory"}


def bad(side: Any, message: str, error: type[Exception] = ValueError, **changes: Any) -> None:
    """forward() with one argument changed raises that error."""
    h, i, t, b = 4, 3, 2, 2
    p = {
        "x": side.empty((t, b, i), "float32"),
        "h": side.empty((b, h), "float32"),
        "weight_ih": side.empty((h, i), "float32"),
        "weight_hh": side.empty((h, h), "float32"),
        "y": side.empty((t, b, h), "float32"),
    }
    strands, layers = changes.pop("strands", 1), changes.pop("layers", 1)
    cell, lengths = changes.pop("cell", "rnn_tanh"), changes.pop("lengths", None)
    space = changes.pop("workspace", None)
    if space is None:
        space = side.workspace(1 << 20)
    of = spec(cell, i, h, **changes.pop("spec", {}))

    def forward() -> None:
        call = side.module.Call(of, t, b, lengths, layers=layers)
        call.forward([p | changes] * strands, space, side.stream)

    with pytest.raises(error, match=message):
        forward()


def test_bad_arguments(side: Any) -> None:
    bad(side, "no cell is named", cell="gru")
    bad(side, "strands must be 1, got 3", strands=3)
    bad(side, "strands must be 1, got 0", strands=0)
    bad(side, "layers must be 1 to 4 in one direction, or 1 in both, got 5 in 1", layers=5)
    bad(side, "or 1 in both, got 2 in 2", layers=2, spec={"directions": 2})
    bad(side, "x of stacked layer 1 must be None: it is the y", strands=2, layers=2)
    bad(side, "compute must be", spec={"compute": "int8"})
    bad(side, "lengths must have 2 entries, got 1", lengths=[1])
    bad(side, r"lengths must lie in 0..2, got 3", lengths=[1, 3])
    bad(side, "x must be an array", TypeError, x=[1.0])
    bad(side, "x must be given", x=None)
    bad(side, "x must be a float32 array", x=side.empty((4,), "float32"))
    bad(side, "x must be a float32 array", x=side.empty((2, 2, 3), "float64"))
    bad(
        side,
        "x must have a contiguous last axis",
        x=side.empty((2, 3, 2), "float32").swapaxes(1, 2),
    )
    bad(side, r"h must be a float32 array of shape \(2, 4\)", h=side.empty((2, 5), "float32"))
    bad(side, "h must be C-contiguous", h=side.empty((4, 2), "float32").T)
    bad(side, "weight_ih must be a", weight_ih=side.empty((5, 3), "float32"))
    bad(
        side,
        "weight_hh must be a float32 array",
        weight_hh=side.put(np.zeros((4, 4), np.int32)),
    )
    bad(side, "bias must be a", bias=side.empty((5,), "float32"))
    bad(side, "workspace must be", workspace=side.workspace(64))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        side.module.plan(spec("lstm", 4, 4), 0, 1, False)
    with pytest.raises(ValueError, match="compute must be None for float64"):
        side.module.plan(spec("lstm", 4, 4, dtype="float64", compute="bfloat16"), 1, 1, False)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        side.module.plan(spec("lstm", 4, 4, layers=0), 1, 1, False)
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got float16"):
        side.module.plan(spec("lstm", 4, 4, dtype="float16"), 1, 1, False)


def test_a_device_that_is_too_small(side: Any) -> None:
    side.device(multiprocessors=1)
    with pytest.raises(ValueError, match="strands: 2 need as many multiprocessors"):
        side.module.plan(spec("lstm", 4, 4, directions=2), 1, 1, False)
    side.device(shared_bytes=64)
    with pytest.raises(ValueError, match="no plan fits 64 bytes"):
        side.module.plan(spec("lstm", 4, 4), 1, 1, False)

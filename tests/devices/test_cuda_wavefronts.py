# SPDX-License-Identifier: Apache-2.0
"""Stacked layers that one call of the GPU's kernels runs as a wavefront."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.cuda_kernels import (
    KINDS,
    MODES,
    Stack,
    check,
    mode_ids,
    run_stack,
    same_bits,
    spec,
)
from support.draws import drops_of
from support.layers import WITH_PRODUCT


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_wavefronts_of_every_cell_and_mode(
    side: Any, cell: str, mode: tuple[str, str | None], layers: int
) -> None:
    dtype, compute = mode
    check(side, Stack(cell, 33, batch=7, inputs=5, dtype=dtype, compute=compute, layers=layers))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_wavefronts_of_few_rows(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    check(side, Stack(cell, 20, batch=2, inputs=3, dtype=dtype, compute=compute, layers=3))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_wavefronts_with_dropout(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    case = Stack(cell, 33, batch=7, dtype=dtype, compute=compute, layers=3, dropout=True)
    check(side, case)
    check(side, replace(case, lengths=(2, 0, 5, 5, 1, 3, 4), reverse=(True,)))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_wavefronts_with_drops(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    case = Stack(cell, 33, batch=7, dtype=dtype, compute=compute, layers=3, dropout=True)
    for drops in drops_of(cell):
        check(side, replace(case, lengths=(2, 0, 5, 5, 1, 3, 4), **drops))
        check(side, replace(case, units=13, batch=3, reverse=(True,), **drops))
        check(side, replace(case, keep=False, **drops))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "both" not in kind])
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_wavefronts_of_kinds_of_input(side: Any, cell: str, kind: str) -> None:
    options = {"reverse": (False,)} | KINDS[kind]
    options["reverse"] = options["reverse"][-1:]
    check(side, Stack(cell, 13, batch=6, layers=3, **options))


WAVEFRONT_DEVICES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "one-block": ({"multiprocessors": 3}, {"blocks_per_group": 1}),
    "groups": ({"multiprocessors": 48}, {"path": "resident"}),
    "streaming": ({"multiprocessors": 12, "shared_bytes": 28 << 10}, {"path": "streaming"}),
    "chunks": ({"multiprocessors": 6, "chunk_bytes": 1}, {}),
    "two-chunks": ({"multiprocessors": 6, "chunk_bytes": 1 << 17}, {}),
}


@pytest.mark.parametrize("compute", [None, "tfloat32", "float16"])
@pytest.mark.parametrize("device", WAVEFRONT_DEVICES)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_wavefronts_on_every_path(side: Any, cell: str, device: str, compute: str | None) -> None:
    facts, expected = WAVEFRONT_DEVICES[device]
    side.device(**facts)
    case = Stack(cell, 70, batch=9, compute=compute, lengths=(5, 2, 5, 0, 4, 5, 3, 1, 5), layers=3)
    plan = side.module.plan(spec(cell, 4, 70, layers=3, compute=compute), 64, 9, True)
    for way in (plan, plan["backward"]):
        # Elsewhere a launch for each layer may be estimated to be faster: its plan is another.
        if way["layers_per_launch"] != [3]:
            assert compute != "float16" or device.endswith("chunks"), way
        elif device != "streaming" or not cell.startswith("rnn"):
            assert expected.items() <= way.items(), way
            assert device != "groups" or way["groups"] > 1, way
    got = check(side, case)
    same_bits(got, run_stack(side, case)[0])


@pytest.mark.parametrize("compute", [None, "tfloat32", "float16"])
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_the_order_of_threads_does_not_matter_to_wavefronts(
    side: Any, cell: str, compute: str | None
) -> None:
    for shared in (227 << 10, 20 << 10):
        case = Stack(cell, 40, batch=5, compute=compute, lengths=(3, 0, 2, 3, 1), layers=3)
        side.device(multiprocessors=6, shared_bytes=shared, descending=False)
        rising = run_stack(side, case)[0]
        side.device(multiprocessors=6, shared_bytes=shared, descending=True)
        same_bits(rising, run_stack(side, case)[0])


def test_what_stacked_layers_hand_each_other_is_no_argument(side: Any) -> None:
    array = side.empty((2, 2, 4), "float32")
    layer = {
        "x": array,
        "weight_ih": side.empty((4, 4), "float32"),
        "weight_hh": side.empty((4, 4), "float32"),
        "reverse": False,
    }
    space = side.workspace(64)
    for message, layers in (
        ("dx of stacked layer 1 must be None: it goes", [layer, layer | {"dx": array}]),
        ("dy of stacked layer 0 must be None: it comes", [layer | {"dy": array}, layer]),
        ("mask of stacked layer 1 must be None: no layer", [layer, layer | {"mask": array}]),
        ("reverse must be the same for all stacked", [layer, layer | {"reverse": True}]),
        ("mask must be a float32 array", [layer | {"mask": array[:1]}, layer]),
    ):
        with pytest.raises(ValueError, match=message):
            side.module.Call(spec("rnn_tanh", 4, 4), 2, 2, None, layers=2).backward(
                layers, space, side.stream
            )

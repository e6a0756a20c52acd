# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels against reference.py: emulated on the host where that was built, and on a GPU.

The emulation (CMake: RNNKERN_EMULATE=device) is the kernels' text, every block a host's thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from support.cuda_kernels import (
    KINDS,
    MODES,
    Case,
    Spoiled,
    Stack,
    check,
    check_matmul,
    mode_ids,
    run,
    run_stack,
    same_bits,
    spec,
)
from support.draws import drops_of
from support.layers import WITH_PRODUCT


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_every_cell_and_mode(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    check(side, Case(cell, 33, batch=7, inputs=5, dtype=dtype, compute=compute))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_few_rows(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    check(side, Case(cell, 20, batch=1, inputs=3, dtype=dtype, compute=compute))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_given_functions(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    """Kernels that look functions up, given the cell's own: many rows, few, and a wavefront."""
    sizes: dict[str, Any] = {"inputs": 5, "dtype": mode[0], "compute": mode[1]}
    sizes["given_functions"] = True
    check(side, Case(cell, 33, batch=7, reverse=(False, True), **sizes))
    check(side, Case(cell, 20, batch=1, **sizes))
    check(side, Stack(cell, 33, batch=7, layers=3, dropout=True, **sizes))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize(("units", "batch"), [(5, 3), (5, 33), (33, 1), (100, 3), (100, 33)])
def test_odd_sizes(side: Any, units: int, batch: int, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    check(side, Case("lstm", units, batch=batch, inputs=7, dtype=dtype, compute=compute))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_kinds_of_input(side: Any, cell: str, kind: str) -> None:
    check(side, Case(cell, 13, batch=6, **KINDS[kind]))


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_kinds_of_input_on_tensor_cores(side: Any, cell: str) -> None:
    check(side, Case(cell, 13, batch=6, compute="bfloat16", **KINDS["tokens-ragged-both"]))
    check(side, Case(cell, 13, batch=6, compute="float16", **KINDS["ragged-both"]))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_drops(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    for drops in drops_of(cell):
        case = Case(cell, 33, batch=7, dtype=dtype, compute=compute, **drops)
        check(side, case)
        case = replace(case, lengths=(2, 0, 5, 5, 1, 3, 4), reverse=(False, True))
        check(side, case)
        check(side, replace(case, keep=False))
        check(side, replace(case, units=20, batch=2, lengths=None))


@pytest.mark.parametrize("facts", [{"chunk_bytes": 1}, {"shared_bytes": 20 << 10}], ids=str)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_drops_on_other_paths(side: Any, cell: str, facts: dict[str, int]) -> None:
    side.device(multiprocessors=4, **facts)
    check(side, Case(cell, 70, batch=9, lengths=(5, 2, 5, 0, 4, 5, 3, 1, 5), **drops_of(cell)[-1]))


# Made-up devices, and what the plan has to come to on them.
DEVICES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "one-block": ({"multiprocessors": 2}, {"blocks_per_group": 1}),
    "groups": ({"multiprocessors": 48}, {"path": "resident"}),
    "streaming": ({"multiprocessors": 4, "shared_bytes": 20 << 10}, {"path": "streaming"}),
    "chunks": ({"multiprocessors": 6, "chunk_bytes": 1}, {}),
}


@pytest.mark.parametrize("compute", [None, "tfloat32", "float16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_every_path(side: Any, cell: str, device: str, compute: str | None) -> None:
    facts, expected = DEVICES[device]
    side.device(**facts)
    case = Case(
        cell,
        70,
        batch=9,
        compute=compute,
        lengths=(5, 2, 5, 0, 4, 5, 3, 1, 5),
        reverse=(False, True),
    )
    plan = side.module.plan(spec(cell, 4, 70, directions=2, compute=compute), 5, 9, True)
    for way in (plan, plan["backward"]):
        # The one gate of a simple network leaves nothing to stream.
        if device != "streaming" or way["path"] == "streaming" or not cell.startswith("rnn"):
            assert expected.items() <= way.items(), way
        if device == "groups":
            assert way["groups"] > 1, way
        if device == "one-block":
            assert way["units_per_block"] >= 70, way
    got = check(side, case)
    again, _ = run(side, case)
    same_bits(got, again)


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_the_order_of_threads_within_a_phase_does_not_matter(
    side: Any, cell: str, mode: tuple[str, str | None]
) -> None:
    dtype, compute = mode
    for shared in (227 << 10, 40 << 10):
        case = Case(cell, 40, batch=7, dtype=dtype, compute=compute, lengths=(3, 0, 2, 3, 3, 1, 2))
        side.device(multiprocessors=3, shared_bytes=shared, descending=False)
        rising = run(side, case)[0]
        side.device(multiprocessors=3, shared_bytes=shared, descending=True)
        same_bits(rising, run(side, case)[0])


def test_batches_longer_than_a_part_of_the_schedule(side: Any) -> None:
    lengths = tuple(int(n) for n in np.random.default_rng(0).integers(0, 4, 1001))
    check(side, Case("rnn_tanh", 3, batch=1001, steps=3, inputs=2, lengths=lengths))


@pytest.mark.parametrize("tokens", [False, True])
def test_more_rows_than_are_summed_at_once(side: Any, tokens: bool) -> None:
    check(side, Case("gru_after", 3, batch=1001, steps=5, inputs=2, tokens=tokens))


def test_inference_and_training_give_the_same_bits(side: Any) -> None:
    for cell in WITH_PRODUCT:
        kinds: dict[str, Any] = {
            "batch": 6,
            "lengths": (5, 1, 2, 3, 4, 0),
            "reverse": (False, True),
        }
        training = run(side, Case(cell, 13, **kinds))[0]
        inference = run(side, Case(cell, 13, keep=False, **kinds))[0]
        same_bits(inference, training)
        kinds["reverse"] = (False,)
        training = run_stack(side, Stack(cell, 13, layers=3, **kinds))[0]
        inference = run_stack(side, Stack(cell, 13, layers=3, keep=False, **kinds))[0]
        same_bits(inference, training)


def test_tokens_outside_count_as_the_nearest_inside(side: Any) -> None:
    check(side, Case("lstm", 5, batch=2, steps=2, tokens=True, given=((-3, 1), (0, 12))))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
def test_matmul(
    side: Any, transpose_a: bool, transpose_b: bool, mode: tuple[str, str | None]
) -> None:
    check_matmul(side, transpose_a, transpose_b, mode)


def test_draws_are_of_options(side: Any) -> None:
    states, steps = side.empty((3, 4), "float32"), side.empty((5, 3, 4), "float32")
    given = {name: side.empty((16, 4), "float32") for name in ("weight_ih", "weight_hh")}
    given |= {"x": steps, "y": steps, "h": states, "c": states}
    kept, marks = {"cells": side.empty((15, 4), "float32")}, side.put(np.zeros((5, 3, 4), bool))
    plain: dict[str, Any] = {}
    h, c = {"zoneout": 0.3}, {"cell_zoneout": 0.3}
    for drops, more, message in (
        (plain, {"h_factors": states}, "h_factors must be None: recurrent_dropout is 0"),
        (plain, {"zone_h": marks}, "zone_h must be None: the share is 0"),
        (h, {"zone_c": marks}, "zone_c must be None: the share is 0"),
        (h, {"zone_h": steps}, "zone_h must be a bool array of shape"),
        (h, {"zone_h": marks[:4]}, "zone_h must be a bool array of shape"),
        (h, kept, "zone_h must be given"),
        (c, kept | {"zone_c": marks}, "fresh_c must be given"),
    ):
        call = side.module.Call(spec("lstm", 4, 4, **drops), 5, 3, None)
        with pytest.raises(ValueError, match=message):
            call.forward([given | more], side.workspace(64), side.stream)


def test_a_wait_in_vain_ends(side: Any) -> None:
    """Of many blocks and phases some are always early: they are to give up at once."""
    case = Case("lstm", 40, batch=6, steps=50, keep=False)
    side.device(multiprocessors=8, most_polls=0)
    assert side.module.plan(case.spec(), 50, 6, False)["groups"] >= 1
    with pytest.raises(RuntimeError, match="a block waited in vain for another's flag"):
        run(side, case)
    side.device()
    check(side, case)


def test_a_failure_tells_where(side: Any) -> None:
    case = Case("lstm", 33, batch=7, compute="float16", reverse=(True,), lengths=(5,) * 6 + (4,))
    plan = r"; plan: path \w+, groups \d+, blocks_per_group \d+, .*shared memory"
    # y comes first, then h, c, dh, dc, the weights, and dx.
    for at, where, says in (
        (
            1,
            (2, slice(3, 5), 7),
            r", forward: y 0: .* 2 of 1155 numbers .* first step 2, row 3, unit 7",
        ),
        (1, (slice(1, 4), 3, 7), r"first step 3, row 3, unit 7: .*in steps 1-3 of 5, rows 3 of 7"),
        (3, (6, 0), r", forward: c_n 0: .* first row 6, unit 0"),
        (9, (slice(1, 4), 3, 2), r", backward: dx: .* first step 1, row 3, input 2"),
        (4, (1, 2), r", backward: dh_0 0: .* first row 1, unit 2"),
        (7, (33 + 5, 9), r", backward: dweight_hh 0: .* first gate 1, unit 5, column 9"),
    ):
        with pytest.raises(AssertionError, match=f"cell='lstm'.*compute='float16'.*{says}.*{plan}"):
            check(Spoiled(side, at, where), case)

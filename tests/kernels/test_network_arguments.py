# SPDX-License-Identifier: Apache-2.0
"""What ``_core.Network`` refuses of its options, and leaves to the call that has them all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import _core
from rnnkern.devices import LayerSpec

INPUTS, UNITS, STEPS, BATCH = 2, 3, 4, 2
X = np.ones((STEPS, BATCH, INPUTS), np.float32)


def numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def network(cell: str, **options: Any) -> _core.Network:
    facts = _core.cells()[cell]
    rows = len(facts["gates"]) * UNITS
    weights: tuple[Any, ...] = (numbers(rows, INPUTS), numbers(rows, UNITS), None, None)
    if facts["layer_norm"]:
        of_c = numbers(UNITS) if len(facts["states"]) > 1 else None
        weights = (*weights, None, None, numbers(rows), numbers(rows), of_c, None)
    return _core.Network(LayerSpec(cell, INPUTS, UNITS, **options), [weights])


def forward(of: _core.Network, states: int, *, keep: bool = False, **given: Any) -> Any:
    h, c = (np.zeros((1, BATCH, UNITS), np.float32) for _ in range(2))
    y = np.zeros((STEPS, BATCH, UNITS), np.float32)
    given = {"masks": (), **given}
    return of.forward(X, None, h, c if states > 1 else None, y, keep=keep, **given)


def drawn() -> list[Any]:
    return [np.zeros((STEPS, BATCH, UNITS), bool)]


@pytest.mark.parametrize("cell", [name for name in _core.cells() if name.endswith("_norm")])
def test_a_cell_that_normalises_drops_nothing(cell: str) -> None:
    """Its equations do not have it: a call with it would be wrong."""
    for name in ("zoneout", "cell_zoneout"):
        with pytest.raises(ValueError, match=f"^{name} must be 0 for this cell, got 0.3"):
            network(cell, **{name: 0.3})
    own, states = network(cell), len(_core.cells()[cell]["states"])
    forward(own, states)
    factors = np.ones((1, BATCH, UNITS), np.float32)
    for given in ({"h_factors": factors}, {"zoneout_h": drawn()}, {"zoneout_c": drawn()}):
        with pytest.raises(ValueError, match="must be left out: the cell normalises"):
            forward(own, states, **given)


def test_a_training_pass_with_zoneout_needs_its_draws() -> None:
    for options in ({"zoneout": 0.2}, {"cell_zoneout": 0.2}):
        own = network("lstm", **options)
        assert own.direct(X, None, None, keep=False) is not None
        assert own.direct(X, None, None, keep=True) is None
        ((name, _),) = options.items()
        wanted = {"zoneout": "zoneout_h", "cell_zoneout": "zoneout_c"}[name]
        with pytest.raises(ValueError, match=f"{wanted} must be one for each layer and direction"):
            forward(own, 2, keep=True)
        assert forward(own, 2, keep=True, **{wanted: drawn()}) is not None


def test_draws_are_one_for_each_layer_and_direction() -> None:
    with pytest.raises(ValueError, match="zoneout_h must be one for each layer and direction"):
        forward(network("lstm"), 2, zoneout_h=drawn() * 2)
    with pytest.raises(ValueError, match="masks must be one for each layer but the last, or none"):
        forward(network("rnn_tanh"), 1, masks=[X])

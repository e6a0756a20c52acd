# SPDX-License-Identifier: Apache-2.0
"""The parameters of recurrent layers: names, shapes, limits and initial values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import LayerSpec

# More parameters or stacked layers than these are a mistake, found before memory is asked for.
_MOST_PARAMETERS, _MOST_LAYERS = 2**40, 2**16


def check_sizes(spec: LayerSpec) -> None:
    """Refuse sizes that no memory has room for."""
    above = (spec.features + spec.outputs) * (spec.layers - 1)
    columns = spec.inputs + spec.outputs + above
    if len(spec.facts.gates) * spec.units * columns * spec.directions > _MOST_PARAMETERS:
        raise ValueError(
            f"input_size, hidden_size and num_layers must give at most {_MOST_PARAMETERS} "
            f"parameters, got input_size={spec.inputs}, hidden_size={spec.units}, "
            f"num_layers={spec.layers}"
        )
    if spec.layers > _MOST_LAYERS:
        raise ValueError(f"num_layers must be at most {_MOST_LAYERS}, got {spec.layers}")


def parameter_kinds(spec: LayerSpec) -> list[str | None]:
    """What a layer's parameters in one direction are called, as ``Weights`` has its fields."""
    facts = spec.facts
    of_c = facts.layer_norm and len(facts.states) > 1
    return [
        "weight_ih",
        "weight_hh" if facts.recurrent_product else None,
        "bias" if spec.bias else None,
        "bias_hn" if spec.bias and facts.recurrent_bias_gate >= 0 else None,
        facts.unit_weights_name if facts.unit_weights else None,
        "weight_hr" if spec.projection else None,
        "gain_ih" if facts.layer_norm else None,
        "gain_hh" if facts.layer_norm else None,
        "gain_c" if of_c else None,
        "shift_c" if of_c and spec.bias else None,
    ]


def parameter_names(spec: LayerSpec) -> list[list[str | None]]:
    """Of every layer and direction, in the order of the states: as ``Weights`` has its fields."""
    endings = ("", "_reverse")[: spec.directions]
    return [
        [kind and f"{kind}_l{layer}{ending}" for kind in parameter_kinds(spec)]
        for layer in range(spec.layers)
        for ending in endings
    ]


def parameter_shapes(spec: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    rows, units = len(spec.facts.gates) * spec.units, spec.units
    shapes: dict[str, tuple[int, ...]] = {}
    for index, names in enumerate(parameter_names(spec)):
        inputs = spec.inputs if index < spec.directions else spec.features
        matrices = ((rows, inputs), (rows, spec.outputs))
        own, projection = (spec.facts.unit_weights, units), (spec.outputs, units)
        norm = ((rows,), (rows,), (units,), (units,))
        of_kinds = (*matrices, (rows,), (units,), own, projection, *norm)
        shapes |= {n: s for n, s in zip(names, of_kinds, strict=True) if n is not None}
    return shapes


def initial_values(
    spec: LayerSpec, seed: int | None, recurrent_init: str
) -> Iterator[tuple[str, Array]]:
    """For each parameter in turn its name and values, in host memory."""
    random = np.random.default_rng(seed)
    bound = spec.units**-0.5
    for name, shape in parameter_shapes(spec).items():
        if name.startswith("weight_hh") and recurrent_init == "orthogonal":
            yield name, _orthogonal(random, shape, spec.units, spec.dtype)
        elif name.startswith(("gain_", "shift_")):
            yield name, np.full(shape, name.startswith("gain_"), spec.dtype)
        else:
            yield name, random.uniform(-bound, bound, shape).astype(spec.dtype)


def _orthogonal(
    random: np.random.Generator, shape: tuple[int, ...], units: int, dtype: np.dtype[np.floating]
) -> Array:
    """A random orthogonal matrix for each gate (Saxe et al. 2014, arXiv:1312.6120).

    Of a projection's fewer columns each stands at right angles to the others.
    """
    rows, outputs = shape
    blocks = []
    for _ in range(rows // units):
        q, r = np.linalg.qr(random.standard_normal((units, outputs)))
        blocks.append(q * np.sign(np.diag(r)))
    return np.concatenate(blocks).astype(dtype)

# SPDX-License-Identifier: Apache-2.0
"""Layers as pure functions of JAX, on the processor: under ``jit``, ``grad`` and ``vmap``.

JAX's runtime calls the kernels directly (its foreign function interface), without Python and
without copies. Imported on request: ``from rnnkern.jax import functional``; needs
``rnnkern[jax]``. On other devices JAX says that the kernels are not there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnkern import _core
from rnnkern.devices import Weights, cell_facts, to_host
from rnnkern.devices.merging import merged
from rnnkern.interop.parts import DROPPED, refuse_options
from rnnkern.layers.base import Recurrent
from rnnkern.layers.configured import spec_of
from rnnkern.layers.weights import parameter_names, parameter_shapes

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError("rnnkern.jax needs JAX: pip install 'rnnkern[jax]'") from error

__all__ = ["Function", "functional"]

Array = Any  # jax.Array, or what becomes one
State = Any  # (L·D, B, H), or two of these

for _name, _handler in (("forward", _core.jax_forward), ("backward", _core.jax_backward)):
    jax.ffi.register_ffi_target(f"rnnkern_{_name}", _handler, platform="cpu")


class _Call(NamedTuple):
    """What is the same whatever the arrays: of one layer in one direction."""

    cell: str
    units: int
    reverse: bool
    bfloat16: bool

    @property
    def attributes(self) -> dict[str, Any]:
        cell = list(_core.cells()).index(self.cell)
        numbers = {"cell": cell, "units": self.units}
        flags = {"reverse": self.reverse, "bfloat16": self.bfloat16}
        return {name: np.int64(value) for name, value in (numbers | flags).items()}


class Function:
    """A layer as a function of its parameters, as `functional` gives it.

    It holds no arrays; one made from an equal layer is equal, so that ``jit`` compiles once.
    """

    def __init__(self, layer: Recurrent) -> None:
        refuse_options(
            layer, "rnnkern.jax", known=("reverse", "merge", "peepholes", "coupled", *DROPPED)
        )
        self._spec = spec_of(layer)
        self._batch_first = layer.batch_first

    def _key(self) -> tuple[Any, ...]:
        return *self._spec, self._batch_first

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and other._key() == self._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        spec = self._spec
        return (
            f"Function({spec.cell}, {spec.inputs}, {spec.units}, num_layers={spec.layers}, "
            f"bidirectional={spec.directions == 2}, reverse={spec.reverse}, merge={spec.merge!r}, "
            f"compute={spec.compute!r})"
        )

    def __call__(
        self,
        params: Mapping[str, Array],
        x: Array,
        state: State | None = None,
        lengths: Array | None = None,
    ) -> tuple[Array, State]:
        """Run the sequences: y, and the last state.

        Args:
            params: By name, as ``layer.params``.
            x: (T, B, I), (B, T, I) with ``batch_first``, or (T, I) for one sequence. In another
                float type than the parameters', as bfloat16, it is converted, and y back.
            state: The initial state (L·D, B, H), (L·D, H) for one sequence, an LSTM's a pair of
                these; None for zeros.
            lengths: (B,), integers in 0..T; y is 0 past them. None for all of T.

        Returns:
            y, shaped as x with the layer's features, and the last state, shaped as the initial one.

        Raises:
            TypeError: x has no float type.
            ValueError: A shape or a parameter's name is not what the layer has.

        """
        spec = self._spec
        dtype = jnp.dtype(spec.dtype)
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x must have a float type, got {x.dtype}: embed tokens first")
        if x.ndim not in (2, 3) or x.shape[-1] != spec.inputs:
            raise ValueError(
                f"x must have shape (T, B, {spec.inputs}) or (T, {spec.inputs}), got {x.shape}"
            )
        given_type, alone, batch_first = x.dtype, x.ndim == 2, self._batch_first
        if alone:
            x = x[:, jnp.newaxis]
        elif batch_first:
            x = x.swapaxes(0, 1)
        x = x.astype(dtype)
        steps, batch = x.shape[:2]
        states = self._states(state, batch, alone, dtype)
        if lengths is None:
            lengths = jnp.full((batch,), steps, jnp.int32)
        else:
            lengths = jnp.asarray(lengths)
            if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
                raise ValueError(f"lengths must be {batch} integers, got {lengths!r}")
            lengths = lengths.astype(jnp.int32)
        weights = self._weights(params, dtype)
        lasts = []
        for layer in range(spec.layers):
            outputs = []
            for direction in range(spec.directions):
                k = layer * spec.directions + direction
                call = _Call(
                    spec.cell, spec.units, spec.backwards(direction), spec.compute is not None
                )
                y, *last = _run(call, x, lengths, weights[k], tuple(s[k] for s in states))
                outputs.append(y)
                lasts.append(last)
            x = merged(jnp, spec, outputs)
        ends = [jnp.stack(kind) for kind in zip(*lasts, strict=True)]
        y = x.astype(given_type)
        if alone:
            y, ends = y[:, 0], [end[:, 0] for end in ends]
        elif batch_first:
            y = y.swapaxes(0, 1)
        return y, (ends[0] if len(ends) == 1 else tuple(ends))

    def _states(self, state: State | None, batch: int, alone: bool, dtype: Any) -> list[Array]:
        """Of each kind (L·D, B, H)."""
        spec = self._spec
        names, shape = spec.facts.states, (spec.states, batch, spec.units)
        if state is None:
            return [jnp.zeros(shape, dtype) for _ in names]
        kinds = (state,) if len(names) == 1 else tuple(state)
        expected = (shape[0], shape[2]) if alone else shape
        if len(kinds) != len(names) or any(jnp.shape(s) != expected for s in kinds):
            raise ValueError(
                f"state must be {' and '.join(names)} of shape {expected}, "
                f"got {[jnp.shape(s) for s in kinds]}"
            )
        return [jnp.asarray(s, dtype).reshape(shape) for s in kinds]

    def _weights(self, params: Mapping[str, Array], dtype: Any) -> list[tuple[Array, ...]]:
        """Of each layer and direction in turn, zeros for a bias that is not there."""
        spec = self._spec
        shapes = parameter_shapes(spec)
        found = {name: jnp.shape(array) for name, array in params.items()}
        if found != shapes:
            raise ValueError(f"params must have the names and shapes {shapes}, got {found}")
        facts = spec.facts
        taken = ["weight_ih"]  # as csrc/bind/jax.cpp takes them
        if facts.recurrent_product:
            taken.append("weight_hh")
        taken.append("bias")
        if facts.recurrent_bias_gate >= 0:
            taken.append("bias_hn")
        if facts.unit_weights:
            taken.append("unit_weights")
        sizes = {"bias": len(facts.gates) * spec.units, "bias_hn": spec.units}
        weights = []
        for names in parameter_names(spec):
            named = dict(zip(Weights._fields, names, strict=True))
            arrays = (
                jnp.zeros(sizes[field], dtype)
                if (name := named[field]) is None
                else jnp.asarray(params[name], dtype)
                for field in taken
            )
            weights.append(tuple(arrays))
        return weights


def functional(layer: Recurrent) -> tuple[Function, dict[str, Array]]:
    """A layer as a pure function, and its parameters as they are now.

    ::

        apply, params = functional(rk.GRU(64, 256, seed=0))

        @jax.jit
        def loss(params, x, target):
            y, state = apply(params, x)
            return jnp.square(y[-1] - target).mean()

        gradients = jax.grad(loss)(params, x, target)

    The layer gives the cell, sizes, directions, ``batch_first`` and ``compute``; what it drops in
    training is no part of the function. Under ``vmap`` over x and the state a call for inference
    is one call of the kernels with all of the batch, but gradients are taken one example after the
    other: where a batch can be given as x, that is faster.

    Args:
        layer: Of any cell, on the CPU.

    Returns:
        The function, and ``layer.params`` as JAX's arrays.

    Raises:
        TypeError: It is no recurrent layer.
        ValueError: It has what the function has not: a projection, zoneout, layer_norm, a clip
            (cell_clip too) or other functions than the cell's own. Or its dtype is float64, and
            JAX is not set to have that (jax_enable_x64).

    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer must be a recurrent layer, as rk.LSTM(64, 256), got {layer!r}")
    params = {name: jnp.asarray(to_host(array)) for name, array in layer.params.items()}
    if any(array.dtype != layer.dtype for array in params.values()):
        raise ValueError(
            "layer must have a dtype that JAX is set to have, got float64: "
            "jax.config.update('jax_enable_x64', True)"
        )
    return Function(layer), params


# -- one layer in one direction -------------------------------------------------------------------


def _shapes(call: _Call, x: Array, states: tuple[Array, ...]) -> tuple[list[Any], list[Any]]:
    """What forward gives, and what it keeps for backward."""
    steps, batch, _ = x.shape
    shaped = functools.partial(jax.ShapeDtypeStruct, dtype=x.dtype)
    results = [shaped((steps, batch, call.units)), *(shaped(s.shape) for s in states)]
    kept, saved = [], cell_facts(call.cell).saved
    if saved:
        kept.append(shaped((steps * batch, saved, call.units)))
    if len(states) > 1:
        kept.append(shaped((steps * batch, call.units)))
    return results, kept


def _ffi(name: str, call: _Call, results: list[Any], *arrays: Array) -> tuple[Array, ...]:
    made = jax.ffi.ffi_call(f"rnnkern_{name}", tuple(results), vmap_method="sequential")
    return tuple(made(*arrays, **call.attributes))


@functools.cache
def _plain(call: _Call) -> Callable[..., tuple[Array, ...]]:
    """Forward, with nothing kept: mapped over x and states it is one call."""

    @jax.custom_batching.custom_vmap  # type: ignore[untyped-decorator]
    def plain(
        x: Array, lengths: Array, weights: tuple[Array, ...], states: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        return _ffi("forward", call, _shapes(call, x, states)[0], x, lengths, *weights, *states)

    @plain.def_vmap  # type: ignore[untyped-decorator]
    def rule(size: int, mapped: Any, *arrays: Any) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        x, lengths, weights, states = arrays
        if any(mapped[2]):
            flat, shape = jax.tree.flatten(arrays)
            flags = jax.tree.leaves(mapped)
            each = [a if m else _repeated(a, size) for a, m in zip(flat, flags, strict=True)]
            results = jax.lax.map(lambda one: plain(*jax.tree.unflatten(shape, one)), each)
            return tuple(results), (True,) * len(results)
        whole = [
            a if m else _repeated(a, size)
            for a, m in zip((x, lengths, *states), (mapped[0], mapped[1], *mapped[3]), strict=True)
        ]
        x, lengths, *states = whole
        steps, batch = x.shape[1:3]
        y, *last = plain(
            x.swapaxes(0, 1).reshape(steps, size * batch, -1),
            lengths.reshape(-1),
            weights,
            tuple(s.reshape(size * batch, -1) for s in states),
        )
        y = y.reshape(steps, size, batch, -1).swapaxes(0, 1)
        results = (y, *(s.reshape(size, batch, -1) for s in last))
        return results, (True,) * len(results)

    function: Callable[..., tuple[Array, ...]] = plain
    return function


def _repeated(array: Array, size: int) -> Array:
    return jnp.broadcast_to(array, (size, *array.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    call: _Call, x: Array, lengths: Array, weights: tuple[Array, ...], states: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Give y (T, B, H) and the last states (B, H)."""
    return _plain(call)(x, lengths, weights, states)


def _forward(
    call: _Call, x: Array, lengths: Array, weights: tuple[Array, ...], states: tuple[Array, ...]
) -> tuple[tuple[Array, ...], Any]:
    results, kept = _shapes(call, x, states)
    made = _ffi("forward", call, results + kept, x, lengths, *weights, *states)
    given = made[: len(results)]
    return given, (x, lengths, weights, states, given[0], made[len(results) :])


def _backward(call: _Call, residuals: Any, upstream: tuple[Array, ...]) -> tuple[Any, ...]:
    x, lengths, weights, states, y, kept = residuals
    likes = [x, *weights, *states]
    results = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in likes]
    arrays = (x, lengths, *weights, *states, y, *kept, *upstream)
    dx, *rest = _ffi("backward", call, results, *arrays)
    none = np.zeros(lengths.shape, jax.dtypes.float0)
    return dx, none, tuple(rest[: len(weights)]), tuple(rest[len(weights) :])


_run.defvjp(_forward, _backward)

# SPDX-License-Identifier: Apache-2.0
"""An affine map over the last axis, and its gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np

from rnnkern._checks import (
    Array,
    DType,
    array_text,
    boolean,
    explains_options,
    float_dtype,
    positive_int,
)
from rnnkern.devices import get_device
from rnnkern.layers.arguments import check_apart, check_out
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.parameter import Parameter
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.rows import as_rows, column_sums, summed


class Linear(Fixed):
    """``y = x · weightᵀ + bias`` over the last axis of ``x``.

    Args:
        in_features: Size of the last axis of ``x``, at least 1.
        out_features: Size of the last axis of ``y``, at least 1.
        bias: Whether a bias is added.
        dtype: ``"float32"`` or ``"float64"``, of the parameters, of ``x`` and of ``y``.
        seed: Seed of the initial values, uniform in ±1/√in_features; ``None`` draws a fresh one.
        device: ``"cpu"`` or ``"cuda"``, as for the recurrent layers.

    Attributes:
        params: ``weight`` (out_features, in_features) and, with a bias, ``bias`` (out_features,).
            Change the arrays in place to learn (see `Parameters`).

    Raises:
        TypeError: A size that is not an integer.
        ValueError: A size below 1, an unknown dtype or a device that cannot be used.

    Example:
        >>> linear = rk.Linear(3, 2, seed=0)
        >>> y, tape = linear.forward(np.ones((5, 3), np.float32))
        >>> dx, grads = tape.backward(np.ones_like(y))
        >>> dx.shape, grads["weight"].shape
        ((5, 3), (2, 3))

    """

    @explains_options
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: DType = "float32",
        seed: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        self.bias = boolean("bias", bias)
        self.dtype = float_dtype("dtype", dtype)
        self.seed = None if seed is None else positive_int("seed", seed, minimum=0)
        self._device = get_device(device)
        self.device = self._device.name
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        parameters = {n: Parameter(n, s, self.dtype, self._device) for n, s in shapes.items()}
        self._weight, self._bias = parameters["weight"], parameters.get("bias")
        self.params = Parameters(parameters, self._initial_values(list(shapes.values())))
        self._settle()

    def _initial_values(self, shapes: list[tuple[int, ...]]) -> Iterator[Array]:
        random = np.random.default_rng(self.seed)
        bound = self.in_features**-0.5
        for shape in shapes:
            yield random.uniform(-bound, bound, shape).astype(self.dtype)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias,
            "dtype": self.dtype.name,
            "seed": self.seed,
            "device": self.device,
        }

    def __call__(self, x: Any, *, out: Array | None = None) -> Array:
        """``y`` (..., out_features) for ``x`` (..., in_features), of which there may be none.

        An ``x`` that is not C-contiguous is copied first.

        Args:
            x: Features.
            out: Where ``y`` goes, which shares no memory with ``x`` and the parameters.

        Raises:
            TypeError: ``x`` or ``out`` is of another dtype than the parameters.
            ValueError: The last axis of ``x`` is not in_features long, or ``out`` does not fit.

        """
        return self._apply(self._product, x, out, self.params.items())

    def _product(self, rows: Array, out: Array | None) -> Array:
        bias = None if self._bias is None else self._bias.own
        return self._device.matmul(rows, self._weight.own, transpose_b=True, bias=bias, out=out)

    def _apply(
        self,
        affine: Callable[[Array, Array | None], Array],
        x: Any,
        out: Array | None,
        parameters: Iterable[tuple[str, Array]] = (),
    ) -> Array:
        """A call, whose product of contiguous rows is ``affine``, which reads the parameters."""
        device = self._device
        x = device.array("x", x)
        rows = self._rows("x", x, self.in_features)
        shape = (*x.shape[:-1], self.out_features)
        if out is None:
            return affine(rows, None).reshape(shape)
        check_out(device, out, shape, self.dtype)
        read = ((f"params[{name!r}]", array) for name, array in parameters)
        check_apart(device, out, (("x", x), *read))
        if out.flags.c_contiguous:
            affine(rows, out.reshape(-1, self.out_features))
        else:
            out[...] = affine(rows, None).reshape(shape)
        return out

    def forward(self, x: Any) -> tuple[Array, LinearTape]:
        """As a call, and a tape; leave ``x`` unchanged until ``tape.backward``."""
        x = self._device.array("x", x)
        return self(x), LinearTape(self, x)

    def freeze(self) -> FrozenLinear:
        """A packed snapshot of the parameters as they are now, to be called as this is.

        A call packs the weight anew, since it may have changed: with few rows that is most of it.
        """
        return FrozenLinear(self)

    def to_torch(self, *, arrays: bool = False) -> dict[str, Any]:
        """The parameters as a state dict of ``torch.nn.Linear``; see `Recurrent.to_torch`."""
        from rnnkern.interop.state_dict import linear_to_torch

        return linear_to_torch(self.params, arrays=arrays)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX file with the input ``x`` and the output ``y``; see `Recurrent.to_onnx`."""
        from rnnkern.interop.onnx.writing import write_linear

        write_linear(self.params, self.dtype, path)

    def _rows(self, name: str, array: Array, features: int) -> Array:
        """``array`` checked, as contiguous rows of ``features`` numbers."""
        return as_rows(self._device, name, array, features, self.dtype)


class FrozenLinear:
    """A packed snapshot of a ``Linear``; it may be called from several threads at once.

    Example:
        >>> linear = rk.Linear(3, 2, seed=0)
        >>> frozen, x = linear.freeze(), np.ones((5, 3), np.float32)
        >>> bool((frozen(x) == linear(x)).all())
        True

    """

    def __init__(self, layer: Linear) -> None:
        self._layer = layer = deepcopy(layer)
        bias = None if layer._bias is None else layer._bias.own
        self._affine = layer._device.affine(layer._weight.own, bias)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: weights are packed anew."""
        return type(self), (self._layer,)

    def __call__(self, x: Any, *, out: Array | None = None) -> Array:
        """As ``Linear``'s call: the same arguments, results, bit for bit, and errors."""
        return self._layer._apply(self._affine, x, out)

    def __repr__(self) -> str:
        return f"FrozenLinear({self._layer!r})"


class LinearTape:
    """What one ``Linear.forward`` kept. ``backward`` may be called any number of times."""

    def __init__(self, layer: Linear, x: Array) -> None:
        self._layer = layer
        self._weight = layer._weight.own.copy()
        self._x = x

    def __repr__(self) -> str:
        return f"LinearTape({self._layer!r}, x={array_text(self._x)})"

    def backward(self, dy: Any) -> Gradients:
        """`Gradients`, which unpacks to ``dx``, shaped like ``x``, and those of ``params``.

        Args:
            dy: Gradient of the loss in ``y`` (..., out_features), of the parameters' dtype.

        Raises:
            TypeError: ``dy`` is of another dtype than the parameters.
            ValueError: ``dy`` is not shaped like ``y``.

        """
        layer, x, device = self._layer, self._x, self._layer._device
        dy = device.array("dy", dy)
        expected = (*x.shape[:-1], layer.out_features)
        if dy.shape != expected:
            raise ValueError(f"dy must have shape {expected}, got {dy.shape}")
        dy_rows = layer._rows("dy", dy, layer.out_features)
        x_rows = layer._rows("x", x, layer.in_features)
        grads = {
            "weight": summed(lambda dy, x: device.matmul(dy, x, transpose_a=True), dy_rows, x_rows)
        }
        if layer.bias:
            with np.errstate(all="ignore"):  # it may overflow, as a product may
                grads["bias"] = column_sums(dy_rows)
        return Gradients(params=grads, x=device.matmul(dy_rows, self._weight).reshape(x.shape))

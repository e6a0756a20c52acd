# SPDX-License-Identifier: Apache-2.0
"""A vector for each token, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnkern._checks import Array, DType, array_text, explains_options, float_dtype, positive_int
from rnnkern.devices import get_device
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.parameter import Parameter
from rnnkern.layers.parameters import Parameters


class Embedding(Fixed):
    """A vector of `features` numbers for each of `tokens` tokens: ``y = weight[x]``.

    A recurrent layer takes tokens as they are, as if they were one-hot rows, and then has a column
    of weights for each of them. An embedding before it makes that column short: with many tokens
    it has fewer parameters, and tokens that are used alike come to lie beside one another.

    Args:
        tokens: V, how many there are, at least 1.
        features: D, numbers for each of them, at least 1.
        dtype: ``"float32"`` or ``"float64"``, of the parameters and of ``y``.
        seed: Seed of the initial values, which are normal with a deviation of 1; ``None`` draws a
            fresh one.
        device: ``"cpu"`` or ``"cuda"``, as for the recurrent layers.

    Attributes:
        params: ``weight`` (V, D). Change the array in place to learn (see `Parameters`).

    Raises:
        TypeError: A size that is not an integer.
        ValueError: A size below 1, an unknown dtype or a device that cannot be used.

    Example:
        >>> words = rk.Embedding(20_000, 128)
        >>> y, tape = words.forward(np.array([[5, 7], [0, 2]]))
        >>> y.shape
        (2, 2, 128)
        >>> grads = tape.backward(np.ones_like(y)).params

    """

    @explains_options
    def __init__(
        self,
        tokens: int,
        features: int,
        *,
        dtype: DType = "float32",
        seed: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.tokens = positive_int("tokens", tokens)
        self.features = positive_int("features", features)
        self.dtype = float_dtype("dtype", dtype)
        self.seed = None if seed is None else positive_int("seed", seed, minimum=0)
        self._device = get_device(device)
        self.device = self._device.name
        shape = (self.tokens, self.features)
        self._weight = Parameter("weight", shape, self.dtype, self._device)
        self.params = Parameters({"weight": self._weight}, self._initial_values())
        self._settle()

    def _initial_values(self) -> Iterator[Array]:
        random = np.random.default_rng(self.seed)
        yield random.standard_normal((self.tokens, self.features)).astype(self.dtype)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "tokens": self.tokens,
            "features": self.features,
            "dtype": self.dtype.name,
            "seed": self.seed,
            "device": self.device,
        }

    def __call__(self, x: Any) -> Array:
        """``y`` (..., D) for tokens ``x`` (...), integers in 0..V-1, of which there may be none.

        On a GPU no value is looked at: a token out of range counts as the nearest that is in it.

        Raises:
            TypeError: ``x`` is not of integers.
            ValueError: A token is not in 0..V-1.

        """
        return self._vectors(self._checked(x))

    def forward(self, x: Any) -> tuple[Array, EmbeddingTape]:
        """As a call, and a tape; leave ``x`` unchanged until ``tape.backward``."""
        tokens = self._checked(x)
        return self._vectors(tokens), EmbeddingTape(self, tokens)

    def _vectors(self, tokens: Array) -> Array:
        vectors: Array = self._weight.own[tokens]
        return vectors

    def _checked(self, x: Any) -> Array:
        """Tokens that all are in range."""
        tokens, most = self._device.array("x", x), self.tokens - 1
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"x must be integers, which are tokens, got {tokens.dtype.name}")
        if not self._device.values_are_free:
            clipped: Array = self._device.xp.clip(tokens, 0, most)
            return clipped
        if tokens.size and not (tokens.min() >= 0 and tokens.max() <= most):
            wrong = tokens.min() if tokens.min() < 0 else tokens.max()
            raise ValueError(f"x must hold tokens in 0..{most}, got {wrong}")
        return tokens


class EmbeddingTape:
    """What one ``Embedding.forward`` kept. ``backward`` may be called any number of times."""

    def __init__(self, layer: Embedding, tokens: Array) -> None:
        self._layer = layer
        self._tokens = tokens

    def __repr__(self) -> str:
        return f"EmbeddingTape({self._layer!r}, x={array_text(self._tokens)})"

    def backward(self, dy: Any) -> Gradients:
        """`Gradients`, which unpacks to None, for tokens have no gradient, and that of ``params``.

        The gradient is an array as large as ``weight``, 0 where no token was. Those of a token that
        comes several times are summed in an order that the tokens alone decide.

        Args:
            dy: Gradient of the loss in ``y`` (..., D), of the parameters' dtype.

        Raises:
            TypeError: ``dy`` is of another dtype than the parameters.
            ValueError: ``dy`` is not shaped like ``y``.

        """
        layer, device = self._layer, self._layer._device
        dy = device.shaped("dy", dy, (*self._tokens.shape, layer.features), layer.dtype)
        rows = device.contiguous(dy).reshape(-1, layer.features)
        tokens = self._tokens.reshape(-1).astype(np.int64, copy=False)
        return Gradients(params={"weight": device.sums_by_token(tokens, rows, layer.tokens)})

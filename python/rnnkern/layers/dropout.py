# SPDX-License-Identifier: Apache-2.0
"""Dropout by itself: for what lies between layers that are not stacked in one."""

from __future__ import annotations

from typing import Any, SupportsIndex

from rnnkern._checks import Array, explains_options, fraction
from rnnkern.devices import get_device, masked
from rnnkern.layers.arguments import check_dropout_key
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.network import dropout_mask
from rnnkern.layers.parameters import Parameters

_STREAM = 2**32  # of random numbers: those below are of the places between a layer's own layers


class Dropout(Fixed):
    """In training numbers are set to 0 at random, and the others scaled so that the mean stays.

    A plain call is inference and changes nothing; ``forward`` is training. The masks are
    counter-based: they follow from ``dropout_key`` alone, whatever the device and the threads.

    Args:
        share: Of the numbers, that is set to 0: at least 0, below 1. The others count
            1/(1 - share) times.
        device: ``"cpu"`` or ``"cuda"``, as for the recurrent layers.

    Attributes:
        params: empty; there is nothing to learn.

    Raises:
        TypeError: ``share`` is not a number.
        ValueError: ``share`` is out of range, or the device cannot be used.

    Example:
        >>> dropout = rk.Dropout(0.2)
        >>> x = np.ones((2, 4), np.float32)
        >>> y, tape = dropout.forward(x, dropout_key=7)  # 0 or 1.25
        >>> dx = tape.backward(np.ones_like(y)).x

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting"
    (2014).

    """

    @explains_options
    def __init__(self, share: float, *, device: str = "cpu") -> None:
        self.share = fraction("share", share)
        self._device = get_device(device)
        self.device = self._device.name
        self.params = Parameters({})
        self._settle()

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"share": self.share, "device": self.device}

    def __call__(self, x: Any) -> Array:
        """``x``, float32 or float64 of any shape: inference drops nothing."""
        return self._device.floats("x", x)

    def forward(
        self, x: Any, *, dropout_key: SupportsIndex | None = None
    ) -> tuple[Array, DropoutTape]:
        """``y``, shaped like ``x``, and a tape.

        Args:
            x: float32 or float64, of any shape.
            dropout_key: an integer in 0..2**64-1 that picks what is dropped, needed when ``share``
                is not 0. The same key gives the same mask to arrays of one shape, so give every
                step of training its own, and each of a model's dropouts too.

        Raises:
            TypeError: ``x`` is not float32 or float64, or the key no integer.
            ValueError: The key is missing or out of range.

        """
        x, mask = self._device.floats("x", x), None
        if dropout_key is not None:
            dropout_key = check_dropout_key(dropout_key, 64)
        elif self.share > 0.0:
            raise ValueError(f"dropout_key must be given when share is {self.share:g}, got None")
        if self.share > 0.0:
            assert dropout_key is not None
            mask = dropout_mask(self._device, x.shape, x.dtype, self.share, dropout_key, _STREAM)
        return x if mask is None else masked(x, mask), DropoutTape(self, x, mask)


class DropoutTape:
    """What one ``Dropout.forward`` kept. ``backward`` may be called any number of times."""

    def __init__(self, layer: Dropout, x: Array, mask: Array | None) -> None:
        self._device = layer._device
        self._share = layer.share
        self._facts = x.shape, x.dtype
        self._mask = mask

    def __repr__(self) -> str:
        shape, dtype = self._facts
        return f"DropoutTape({self._share:g}, x={dtype.name} {shape})"

    def backward(self, dy: Any) -> Gradients:
        """`Gradients`, which unpacks to ``dx``, shaped like ``x``, and no parameters.

        Args:
            dy: Gradient of the loss in ``y``, of its shape and dtype.

        Raises:
            TypeError: ``dy`` is of another dtype than ``y``.
            ValueError: ``dy`` is not shaped like ``y``.

        """
        dy = self._device.shaped("dy", dy, *self._facts)
        return Gradients(params={}, x=dy if self._mask is None else masked(dy, self._mask))

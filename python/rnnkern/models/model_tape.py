# SPDX-License-Identifier: Apache-2.0
"""What a model keeps of a call for its backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rnnkern._checks import Array, boolean
from rnnkern.layers.arguments import State
from rnnkern.layers.embedding import EmbeddingTape
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.linear import LinearTape
from rnnkern.models.readout import Readout


class ModelTape:
    """What one ``Model.forward`` kept. ``backward`` may be called any number of times.

    Attributes:
        recurrent: The recurrent layers' own tape.

    Example:
        >>> model = rk.Model(rk.GRU(3, 4, seed=0), rk.Linear(4, 2, seed=1))
        >>> outputs, h, tape = model.forward(np.ones((5, 2, 3), np.float32))
        >>> gradients = tape.backward(np.ones_like(outputs))
        >>> sorted(gradients.params) == sorted(model.params)
        True

    """

    def __init__(
        self,
        embedding: EmbeddingTape | None,
        recurrent: Any,
        readout: Readout,
        head: LinearTape,
    ) -> None:
        self.recurrent = recurrent
        self._embedding = embedding
        self._readout = readout
        self._head = head

    def __repr__(self) -> str:
        return f"ModelTape({self.recurrent!r})"

    def backward(
        self,
        doutputs: Any,
        dstate: State | None = None,
        *,
        state_gradients: bool = False,
        x_gradient: bool = True,
    ) -> Gradients:
        """Gradients of a loss L.

        Args:
            doutputs: ∂L/∂outputs, shaped as these.
            dstate: ∂L/∂(last state), as a layer's tape takes it; ``None`` is zero.
            state_gradients: As of a layer's tape.
            x_gradient: Whether to return ∂L/∂x. Without it there is ``None``, and where the model
                has no embedding a step has a product less.

        Returns:
            ``Gradients`` with ``params`` by the model's names, ``x`` (``None`` for tokens) and
            ``state``, the gradient in the initial one.

        Raises:
            TypeError, ValueError: ``doutputs`` or ``dstate`` has the wrong dtype or shape.

        """
        x_gradient = boolean("x_gradient", x_gradient)
        head = self._head.backward(doutputs)
        assert head.x is not None
        dy, dlast = self._readout.backward(head.x)
        layers = self.recurrent.backward(
            dy,
            dstate,
            dlast=dlast,
            state_gradients=state_gradients,
            x_gradient=x_gradient or self._embedding is not None,
        )
        parts: dict[str, Mapping[str, Array]] = {"recurrent": layers.params, "head": head.params}
        if self._embedding is not None:
            parts = {"embedding": self._embedding.backward(layers.x).params, **parts}
        return Gradients(
            params={
                f"{p}.{name}": array for p, own in parts.items() for name, array in own.items()
            },
            x=layers.x if self._embedding is None else None,
            state=layers.state,
            steps=layers.steps,
            reset_to=layers.reset_to,
        )

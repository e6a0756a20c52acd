# SPDX-License-Identifier: Apache-2.0
"""A model on sequences that arrive piece by piece."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array
from rnnkern.devices import get_device
from rnnkern.layers.arguments import State, check_out
from rnnkern.layers.embedding import Embedding
from rnnkern.layers.linear import Linear


class ModelStream:
    """Runs a model step by step over a snapshot of its parameters; see ``model.stream``.

    It is the recurrent layers' `Stream` between embedding and head. Outputs are those of each row's
    sequence so far; states and rows are as there.

    Example:
        >>> model = rk.Model(rk.GRU(3, 4, seed=0), rk.Linear(4, 2, seed=1))
        >>> stream, x = model.stream(batch=2), np.ones((5, 2, 3), np.float32)
        >>> steps = [stream.step(x_t) for x_t in x]
        >>> bool(np.allclose(steps, model.predict(x)))
        True

    """

    def __init__(self, embedding: Embedding | None, recurrent: Any, head: Linear) -> None:
        """Of the model's embedding and head, and a stream of its recurrent layers."""
        self._source = embedding, head
        self._recurrent = recurrent
        self._device = get_device(head.device)
        self._snapshot()

    def __repr__(self) -> str:
        return f"ModelStream({self._recurrent!r})"

    def _snapshot(self) -> None:
        embedding, head = self._source
        self._embedding = deepcopy(embedding)
        self._head = head.freeze()

    def step(self, x: Any, out: Array | None = None, *, mask: Any = None) -> Array:
        """One step: x (B, I), or tokens (B,); returns the outputs (B, K), in `out` if given.

        Args:
            x: One step of every row.
            out: Where the outputs go; it may lie where x does.
            mask: (B,), bool, in host memory: the rows that go on. The others hold their state,
                their outputs are 0, and nobody looks at what x has for them.

        """
        if out is not None:
            self._check_out(out, (self.batch,))
        features, live = self._features(x, mask)
        y = self._recurrent.step(features, mask=mask)
        return self._outputs(y, mask, live, out)

    def block(
        self, x: Any, out: Array | None = None, *, resets: Any = None, mask: Any = None
    ) -> Array:
        """Several steps: x (T, B, I), or tokens (T, B); outputs (T, B, K), in `out` if given.

        Args:
            x: The steps of every row.
            out: Where the outputs go; it may lie where x does.
            resets: (T, B) bool: before these steps the row's state is zero again.
            mask: (T, B) bool: where it is False the row skips the step; its outputs are 0 there,
                and nobody looks at what x has for it.

        """
        features, live = self._features(x, mask)
        if out is not None:
            self._check_out(out, self._device.array("x", features).shape[:2])
        y = self._recurrent.block(features, resets=resets, mask=mask)
        return self._outputs(y, mask, live, out)

    def _outputs(
        self, y: Array, mask: Any, live: tuple[Array, ...] | None, out: Array | None
    ) -> Array:
        """The head's of what the layers gave, and 0 where the mask, with its places, is False."""
        if mask is None:
            return self._head(y, out=out)
        if live is None:
            live = self._places(mask)
        outputs = self._head(y[live])
        if out is None:
            out = self._device.xp.empty((*y.shape[:-1], outputs.shape[-1]), outputs.dtype)
        out[...] = 0
        out[live] = outputs
        return out

    def _places(self, mask: Any) -> tuple[Array, ...]:
        """Where a mask is true, on the device."""
        return tuple(self._device.put(index) for index in np.nonzero(mask))

    def _check_out(self, out: Array, rows: tuple[int, ...]) -> None:
        """Refuse a wrong one before the state goes on."""
        head = self._source[1]
        check_out(self._device, out, (*rows, head.out_features), head.dtype)

    def _features(self, x: Any, mask: Any) -> tuple[Any, tuple[Array, ...] | None]:
        """What the layers are given: of tokens where the mask is False, whatever these are, 0.

        And the mask's places, where these had to be found.
        """
        if self._embedding is None:
            return x, None
        if mask is None:
            return self._embedding(x), None
        x = self._device.array("x", x)
        if x.dtype.kind not in "iu" or x.shape != np.shape(mask):
            return self._embedding(x), None  # which refuses it, or the layers will
        features = self._device.xp.zeros(
            (*x.shape, self._embedding.features), self._embedding.dtype
        )
        live = self._places(mask)
        features[live] = self._embedding(x[live])
        return features, live

    @property
    def batch(self) -> int:
        """Rows, each a sequence of its own."""
        return int(self._recurrent.batch)

    @property
    def state(self) -> State:
        """A copy of the recurrent layers' state now; one assigned is copied too."""
        state: State = self._recurrent.state
        return state

    @state.setter
    def state(self, state: State) -> None:
        self._recurrent.state = state

    def take(self, rows: Array) -> None:
        """Let row b go on from where row ``rows[b]`` is."""
        self._recurrent.take(rows)

    def reset(self, mask: Any = None) -> None:
        """Set the state to zero, of all rows or of some; as ``Stream.reset``."""
        self._recurrent.reset(mask)

    def get_rows(self, rows: Any) -> State:
        """A copy of some rows' state; as ``Stream.get_rows``."""
        state: State = self._recurrent.get_rows(rows)
        return state

    def set_rows(self, rows: Any, state: State | None) -> None:
        """Give some rows another state; as ``Stream.set_rows``."""
        self._recurrent.set_rows(rows, state)

    def add_rows(self, count: int = 1, state: State | None = None) -> NDArray[np.int64]:
        """Further rows, and their numbers; as ``Stream.add_rows``."""
        numbers: NDArray[np.int64] = self._recurrent.add_rows(count, state)
        return numbers

    def remove_rows(self, rows: Any) -> None:
        """Take rows away; as ``Stream.remove_rows``."""
        self._recurrent.remove_rows(rows)

    def refresh(self) -> None:
        """Take the model's parameters as they are now; the state stays.

        Raises:
            ValueError: The stream is a copy or was pickled, and has no model.

        """
        self._recurrent.refresh()
        self._snapshot()

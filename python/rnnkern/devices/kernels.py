# SPDX-License-Identifier: Apache-2.0
"""What a device's kernels do with a network: the same on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rnnkern._checks import Array
from rnnkern.devices.spec import Weights

Gradient = Weights  # ∂L/∂(each of its fields)


class Kept(Protocol):
    """What backward needs of a forward pass, beside its x and y."""

    @property
    def saved(self) -> Sequence[Array | None]:
        """By layer and direction (live steps, saved, H), or None."""

    @property
    def places(self) -> Array:
        """t·B + b of each live step (live steps,), as they stand in ``saved``; host memory."""

    @property
    def between(self) -> Sequence[Array]:
        """Of every layer but the last y (T, B, D·H); of merged directions the last one's too."""

    def backward(
        self,
        x: Array,
        y: Array,
        dy: Array | None,
        dh: Array,
        dc: Array | None,
        dx: Array | None,
        gradients: Sequence[Gradient],
        state_gradients: Sequence[Array] | None = None,
    ) -> None:
        """The gradients of ``NetworkKernels.forward``.

        Args:
            x: as there.
            y: as it was written there.
            dy: of y; None is zero.
            dh: (L·D, B, H), in place: of the last states in, of the initial ones out.
            dc: likewise; None for a cell without c.
            dx: added to; None for tokens.
            gradients: by layer and direction, added to.
            state_gradients: by layer and direction (live steps, states + gates, H), written; or
                None.

        """

    def direct(
        self, x: Array, y: Array, dy: Any, dstate: Any, unbatched: bool, with_dx: bool = True
    ) -> Any:
        """The same for what a caller gives: dx, dstate and the gradients of parameters, all new.

        None where that has to be converted or explained first, which is everywhere unless the
        kernels look at what a caller gives themselves; and for dx without `with_dx`.
        """
        return None


class NetworkKernels(Protocol):
    """A network's weights as the kernels hold them."""

    def packed(self, *, with_input: bool = True, with_backward: bool = False) -> NetworkKernels:
        """The same, with what helps many calls; the weights must stay as they are.

        Without `with_input` the first layer's x must be tokens. `with_backward` also for backward
        passes: all that is kept of calls then shares the weights.
        """

    def forward(
        self,
        x: Array,
        lengths: Array | None,
        h: Array,
        c: Array | None,
        y: Array,
        masks: Sequence[Array],
        keep: bool,
        resets: Array | None = None,
        mask: Array | None = None,
        states_anew: bool = False,
        h_factors: Array | None = None,
        zoneout_h: Sequence[Array] = (),
        zoneout_c: Sequence[Array] = (),
    ) -> Kept | None:
        """The input through all layers, of which neither T nor B is 0.

        Args:
            x: (T, B, I), or tokens (T, B).
            lengths: (B,) in host memory, or None.
            h: (L·D, B, H), in place: the initial states in, the last ones out.
            c: likewise; None for a cell without c.
            y: (T, B, features), written.
            masks: factors, (T, B, features), of what each layer hands to the next, or none.
            keep: whether a backward pass follows: then what it needs is given.
            resets: (T, B) bool in host memory: before that step a row begins anew; or None.
            mask: likewise: where it is False a row keeps its state, and y is 0.
            states_anew: whether rows begin anew with states of their own, not with zero: h and c
                have 2·B rows then, of which these are the second half.
            h_factors: (L·D, B, P) of h as recurrent products take it, at all steps; or None.
            zoneout_h: by layer and direction (T, B, P) bool, which units of h keep their value;
                needed with `keep` for a spec with zoneout. A pass without any takes the shares.
            zoneout_c: likewise (T, B, H), of c.

        """

    def direct(self, x: Any, state: Any, lengths: Any, keep: bool) -> Any:
        """The same for what a caller gives: y, the last state and, with `keep`, what is kept.

        None where that has to be converted or explained first. Results are new arrays.
        """

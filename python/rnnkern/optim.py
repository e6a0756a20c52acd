"""Optimizers that change the parameters' arrays in place and allocate nothing in a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

from rnnkern._checks import Array, boolean, finite_float
from rnnkern.device import device_of


class Optimizer:
    """What the optimizers share: the parameters, arrays of state beside them, steps taken.

    Args:
        params: Arrays by name, all NumPy's or all CuPy's, C-contiguous float32 or float64; updated
            in place, so they must stay the model's own arrays.
        lr: Learning rate, at least 0.
        state: Names of the arrays of state kept for every parameter, all 0 at first.

    Raises:
        TypeError: A parameter is not a float32 or float64 array, or ``lr`` not a number.
        ValueError: A parameter is not C-contiguous or not writeable, or ``lr`` is negative, NaN
            or infinite.

    """

    def __init__(self, params: Mapping[str, Array], lr: float, state: tuple[str, ...]) -> None:
        self.lr = finite_float("lr", lr, minimum=0.0)
        self.steps = 0
        self._params = dict(params)
        self._device = device_of(next(iter(self._params.values()), None))
        xp = self._device.xp
        for name, p in self._params.items():
            if not isinstance(p, xp.ndarray) or p.dtype not in (np.float32, np.float64):
                found = p.dtype if isinstance(p, xp.ndarray) else type(p).__name__
                raise TypeError(f"params[{name!r}] must be a float32 or float64 array, got {found}")
            if not (p.flags.c_contiguous and self._device.writeable(p)):
                raise ValueError(f"params[{name!r}] must be C-contiguous and writeable")
        self._state = {
            kind: {name: xp.zeros_like(p) for name, p in self._params.items()} for kind in state
        }
        self._block = min(self._device.block, max([1, *(p.size for p in self._params.values())]))
        dtypes = {p.dtype for p in self._params.values()}
        self._scratch = {dtype: xp.empty(self._block, dtype) for dtype in dtypes}

    def step(self, grads: Mapping[str, Array], lr: float | None = None) -> None:
        """Take one step down the gradients.

        Args:
            grads: One array for every parameter, by its name, of its shape and dtype.
            lr: Learning rate of this step, at least 0; ``None`` takes the optimizer's own.

        Raises:
            TypeError: A gradient is of another dtype than its parameter, or ``lr`` not a number.
            ValueError: A gradient is missing, unknown or of another shape than its parameter, or
                ``lr`` is negative, NaN or infinite. Nothing was changed then.

        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Copies of all that a resumed run needs beside the parameters and hyper-parameters.

        ``steps`` is the number of steps taken (int64, shape ()); the rest is
        ``<kind>.<parameter>``, shaped and typed like the parameter.
        """
        arrays = {
            f"{kind}.{name}": array.copy()
            for kind, of_kind in self._state.items()
            for name, array in of_kind.items()
        }
        return {"steps": np.array(self.steps, np.int64), **arrays}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take back what ``state_dict`` gave: steps go on bit for bit as if never interrupted.

        Raises:
            ValueError: Arrays missing, unknown, or of another shape or dtype. Nothing was changed
                then.

        """
        own = {
            f"{kind}.{name}": array
            for kind, of_kind in self._state.items()
            for name, array in of_kind.items()
        }
        _same_names("state", state, {"steps", *own})
        for name, array in {"steps": np.array(0, np.int64), **own}.items():
            if (state[name].shape, state[name].dtype) != (array.shape, array.dtype):
                raise ValueError(
                    f"state[{name!r}] must be {array.dtype} of shape {array.shape}, "
                    f"got {state[name].dtype} of shape {state[name].shape}"
                )
        self.steps = int(state["steps"])
        for name, array in own.items():
            array[...] = self._device.put(state[name])

    def _begin(self, grads: Mapping[str, Array], lr: float | None) -> float:
        """Check the arguments of a step before anything is changed; count it, give its rate."""
        rate = self.lr if lr is None else finite_float("lr", lr, minimum=0.0)
        _same_names("grads", grads, self._params.keys())
        for name, p in self._params.items():
            if grads[name].dtype != p.dtype:
                raise TypeError(f"grads[{name!r}] must be {p.dtype}, got {grads[name].dtype}")
            if grads[name].shape != p.shape:
                raise ValueError(
                    f"grads[{name!r}] must have shape {p.shape}, got {grads[name].shape}"
                )
        self.steps += 1
        return rate

    def _blocks(self, grads: Mapping[str, Array]) -> Iterator[tuple[Array, ...]]:
        """For each block of each parameter: scratch, parameter, gradient and the kinds of state."""
        for name, p in self._params.items():
            arrays = (p, grads[name], *(of_kind[name] for of_kind in self._state.values()))
            flat = [array.reshape(-1) for array in arrays]
            scratch = self._scratch[p.dtype]
            for start in range(0, p.size, self._block):
                stop = min(start + self._block, p.size)
                yield scratch[: stop - start], *(array[start:stop] for array in flat)


class SGD(Optimizer):
    """Stochastic gradient descent: ``v ← momentum·v + g``, ``p ← p - lr·v``.

    Args:
        params: Arrays by name, C-contiguous float32 or float64; updated in place.
        lr: Learning rate, at least 0.
        momentum: In 0..1, 1 excluded.
        nesterov: Step along ``g + momentum·v`` instead of ``v``; needs a momentum.
        weight_decay: At least 0; adds ``weight_decay·p`` to the gradient.

    Raises:
        TypeError: As for ``Optimizer``.
        ValueError: As for ``Optimizer``, or a hyper-parameter out of range.

    """

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum = _fraction("momentum", momentum)
        self.nesterov = boolean("nesterov", nesterov)
        self.weight_decay = finite_float("weight_decay", weight_decay, minimum=0.0)
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0, got momentum 0.0")
        super().__init__(params, lr, ("velocity",) if momentum else ())

    def step(self, grads: Mapping[str, Array], lr: float | None = None) -> None:
        """As ``Optimizer.step``."""
        rate = self._begin(grads, lr)
        for scratch, p, g, *state in self._blocks(grads):
            if self.weight_decay:
                np.multiply(p, self.weight_decay, out=scratch)
                scratch += g
            else:
                scratch[...] = g
            if state:
                velocity = state[0]
                velocity *= self.momentum
                velocity += scratch
                if self.nesterov:
                    scratch *= rate
                    p -= scratch
                    np.multiply(velocity, rate * self.momentum, out=scratch)
                else:
                    np.multiply(velocity, rate, out=scratch)
            else:
                scratch *= rate
            p -= scratch


class Adam(Optimizer):
    """Adam with bias correction, and with the decoupled weight decay of AdamW.

    With m and v the bias-corrected running means of g and g²,
    ``p ← p - lr·weight_decay·p - lr·m / (√v + eps)``.

    Args:
        params: Arrays by name, C-contiguous float32 or float64; updated in place.
        lr: Learning rate, at least 0.
        betas: Decay of the two running means, each in 0..1, 1 excluded.
        eps: Above 0.
        weight_decay: At least 0.

    Raises:
        TypeError: As for ``Optimizer``.
        ValueError: As for ``Optimizer``, or a hyper-parameter out of range.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization" (2015), whose defaults
    these are; Loshchilov and Hutter, "Decoupled weight decay regularization" (2019).

    """

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        self.betas = (_fraction("betas[0]", betas[0]), _fraction("betas[1]", betas[1]))
        self.eps = finite_float("eps", eps, minimum=0.0, exclusive=True)
        self.weight_decay = finite_float("weight_decay", weight_decay, minimum=0.0)
        super().__init__(params, lr, ("first", "second"))

    def step(self, grads: Mapping[str, Array], lr: float | None = None) -> None:
        """As ``Optimizer.step``."""
        rate = self._begin(grads, lr)
        # The state holds discounted sums of g and of g², not means: two products fewer. Dividing
        # by n, the sum of the weights so far, gives the bias-corrected mean.
        first_beta, second_beta = self.betas
        first_n = (1.0 - first_beta**self.steps) / (1.0 - first_beta)
        second_n = (1.0 - second_beta**self.steps) / (1.0 - second_beta)
        root_n = math.sqrt(second_n)
        for name, p in self._params.items():
            self._device.adam(
                p,
                grads[name],
                self._state["first"][name],
                self._state["second"][name],
                decay=1.0 - rate * self.weight_decay,
                first_beta=first_beta,
                second_beta=second_beta,
                epsilon=self.eps * root_n,
                rate=rate * root_n / first_n,
            )


def _fraction(name: str, value: float) -> float:
    """``value`` as a float in 0..1, 1 excluded."""
    value = finite_float(name, value, minimum=0.0)
    if value >= 1.0:
        raise ValueError(f"{name} must be below 1, got {value}")
    return value


def _same_names(what: str, given: Mapping[str, Any], expected: Set[str]) -> None:
    """Refuse ``given`` unless its names are exactly the expected ones."""
    for problem, names in (
        ("lacks", expected - given.keys()),
        ("has the unknown", given.keys() - expected),
    ):
        if names:
            raise ValueError(f"{what} {problem} {', '.join(sorted(names))}")

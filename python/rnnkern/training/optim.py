# SPDX-License-Identifier: Apache-2.0
"""Optimizers that change the parameters' arrays in place and allocate nothing in a step."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, TypeAlias

import numpy as np

from rnnkern._checks import (
    FLOATS,
    Array,
    boolean,
    explains_options,
    finite_float,
    fraction,
    positive_float,
)
from rnnkern.devices import device_of
from rnnkern.layers.gradients import Gradients
from rnnkern.training.named import named_arrays

Rate: TypeAlias = "float | Callable[[int], float]"  # of a step, by the number of those before it

# A velocity below the smallest normal number is set to 0 every so many steps: with gradients of 0
# it would come to rest among the denormal ones, which are slow. (Adam's kernel keeps none.)
STEPS_TO_TIDY = 32


class Optimizer:
    """What the optimizers share: the parameters, arrays of state beside them, steps taken.

    Args:
        params: What is learned, updated in place: a layer or model, its ``params``, any arrays by
            name (all NumPy's or all CuPy's, C-contiguous float32 or float64), or a mapping or list
            of these, as ``{"lstm": lstm, "head": head}``. Gradients are then given alike, as
            ``{"lstm": grads, "head": of_head}``.
        lr: Learning rate, at least 0: a number, or a function of the steps taken before, as a
            `Schedule` is.
        state: Names of the arrays of state kept for every parameter, all 0 at first.

    Raises:
        TypeError: A parameter is not a float32 or float64 array, or ``lr`` not a number.
        ValueError: There is no parameter, one is not C-contiguous or not writeable, two share
            memory, or ``lr`` is negative, NaN or infinite.

    """

    def __init__(self, params: Any, lr: Rate, state: tuple[str, ...]) -> None:
        self.steps = 0
        self._rate = lr
        _ = self.lr  # refused here, if it is wrong
        given = named_arrays("params", params)
        if not given:
            raise ValueError("params must hold at least one array, got none")
        self._device = device_of(next(iter(given.values())))
        xp = self._device.xp
        for name, p in given.items():
            if not isinstance(p, xp.ndarray) or p.dtype not in FLOATS:
                found = p.dtype if isinstance(p, xp.ndarray) else type(p).__name__
                raise TypeError(f"params[{name!r}] must be a float32 or float64 array, got {found}")
            if not (p.flags.c_contiguous and self._device.writeable(p)):
                raise ValueError(f"params[{name!r}] must be C-contiguous and writeable")
        for (name, p), (other, q) in itertools.combinations(given.items(), 2):
            if xp.may_share_memory(p, q):
                raise ValueError(f"params[{name!r}] and params[{other!r}] must not share memory")
        # Views of our own: a shape or flag that is set on the caller's array is no concern of ours.
        self._params = {name: p.view() for name, p in given.items()}
        self._state = {
            kind: {name: xp.zeros_like(p) for name, p in self._params.items()} for kind in state
        }
        self._block = min(self._device.block, max([1, *(p.size for p in self._params.values())]))
        dtypes = {p.dtype for p in self._params.values()}
        self._scratch = {dtype: xp.empty(self._block, dtype) for dtype in dtypes}

    def __repr__(self) -> str:
        count = sum(p.size for p in self._params.values())
        shown = [f"{len(self._params)} arrays of {count} numbers", f"lr={self._rate!r}"]
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if name not in ("params", "lr") and getattr(self, name) != parameter.default:
                shown.append(f"{name}={getattr(self, name)!r}")
        return f"{type(self).__name__}({', '.join(shown)}, steps={self.steps})"

    @property
    def lr(self) -> float:
        """The learning rate of the next step; a number or a schedule may be assigned."""
        rate = self._rate(self.steps) if callable(self._rate) else self._rate
        return finite_float("lr", rate, minimum=0.0)

    @lr.setter
    def lr(self, lr: Rate) -> None:
        self._rate = lr

    def step(self, grads: Any, lr: float | None = None) -> None:
        """Take one step down the gradients.

        Args:
            grads: One array for every parameter, of its shape and dtype: what a tape's
                ``backward`` gave, or by the parameters' names, or such nested as the parameters
                were given.
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
        given = named_arrays("state", state)
        _same_names("state", given, {"steps", *own})
        for name, array in {"steps": np.array(0, np.int64), **own}.items():
            if (given[name].shape, given[name].dtype) != (array.shape, array.dtype):
                raise ValueError(
                    f"state[{name!r}] must be {array.dtype} of shape {array.shape}, "
                    f"got {given[name].dtype} of shape {given[name].shape}"
                )
        steps = int(given["steps"])
        if steps < 0:
            raise ValueError(f"state['steps'] must be at least 0, got {steps}")
        moved = {name: self._device.put(given[name]) for name in own}
        self.steps = steps
        for name, array in own.items():
            array[...] = moved[name]

    def _begin(self, grads: Any, lr: float | None) -> tuple[dict[str, Array], float]:
        """Check the arguments of a step before anything is changed; count it.

        Gives the gradients by name, and the rate.
        """
        rate = self.lr if lr is None else finite_float("lr", lr, minimum=0.0)
        given = grads.params if isinstance(grads, Gradients) else grads
        if type(given) is not dict or given.keys() != self._params.keys():
            given = named_arrays("grads", grads)
            _same_names("grads", given, self._params.keys())
        checked = {
            name: self._device.shaped(f"grads[{name!r}]", given[name], p.shape, p.dtype)
            for name, p in self._params.items()
        }
        self.steps += 1
        return checked, rate

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

    A gradient that is infinite or NaN makes its parameter so, for good: see what ``clip_grad_norm``
    returns before a step.

    Args:
        params: What is learned, as for ``Optimizer``: a layer, arrays by name, a dict of these.
        lr: Learning rate, at least 0: a number or a `Schedule`.
        momentum: In 0..1, 1 excluded.
        nesterov: Step along ``g + momentum·v`` instead of ``v``; needs a momentum.
        weight_decay: At least 0; adds ``weight_decay·p`` to the gradient.

    Raises:
        TypeError: As for ``Optimizer``.
        ValueError: As for ``Optimizer``, or a hyper-parameter out of range.

    Example:
        >>> linear = rk.Linear(3, 2, seed=0)
        >>> sgd = rk.SGD(linear, lr=0.1, momentum=0.9)
        >>> y, tape = linear.forward(np.ones((5, 3), np.float32))
        >>> sgd.step(tape.backward(y))

    """

    @explains_options
    def __init__(
        self,
        params: Any,
        lr: Rate,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum = fraction("momentum", momentum)
        self.nesterov = boolean("nesterov", nesterov)
        self.weight_decay = finite_float("weight_decay", weight_decay, minimum=0.0)
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0, got momentum 0.0")
        super().__init__(params, lr, ("velocity",) if momentum else ())

    def step(self, grads: Any, lr: float | None = None) -> None:
        """As ``Optimizer.step``."""
        grads, rate = self._begin(grads, lr)
        with np.errstate(all="ignore"):  # a number may vanish
            self._descend(grads, rate, tidy=self.steps % STEPS_TO_TIDY == 0)

    def _descend(self, grads: Mapping[str, Array], rate: float, *, tidy: bool) -> None:
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
            if state and tidy:
                np.abs(velocity, out=scratch)
                velocity *= scratch >= np.finfo(p.dtype).tiny


class Adam(Optimizer):
    """Adam with bias correction, and with the decoupled weight decay of AdamW.

    With m and v the bias-corrected running means of g and g²,
    ``p ← p - lr·weight_decay·p - lr·m / (√v + eps)``.

    A gradient so large that its squares could add up to infinity (2.9e17 in float32 with the usual
    betas) counts as that large, so that v recovers. One that is infinite or NaN makes its parameter
    NaN, for good: see what ``clip_grad_norm`` returns before a step.

    Args:
        params: What is learned, as for ``Optimizer``: a layer, arrays by name, a dict of these.
        lr: Learning rate, at least 0: a number or a `Schedule`.
        betas: Decay of the two running means, each in 0..1, 1 excluded.
        eps: Above 0.
        weight_decay: At least 0.

    Raises:
        TypeError: As for ``Optimizer``.
        ValueError: As for ``Optimizer``, or a hyper-parameter out of range.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization" (2015), whose defaults
    these are; Loshchilov and Hutter, "Decoupled weight decay regularization" (2019).

    Example:
        >>> layers = {"gru": rk.GRU(3, 4), "head": rk.Linear(4, 2)}
        >>> adam = rk.Adam(layers, lr=1e-3)
        >>> y, h, gru_tape = layers["gru"].forward(np.ones((5, 2, 3), np.float32))
        >>> out, head_tape = layers["head"].forward(y)
        >>> dy, head_grads = head_tape.backward(out)
        >>> adam.step({"gru": gru_tape.backward(dy), "head": head_grads})

    """

    @explains_options
    def __init__(
        self,
        params: Any,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        self.betas = (fraction("betas[0]", betas[0]), fraction("betas[1]", betas[1]))
        self.weight_decay = finite_float("weight_decay", weight_decay, minimum=0.0)
        super().__init__(params, lr, ("first", "second"))
        self.eps = positive_float("eps", eps, self._scratch)

    def step(self, grads: Any, lr: float | None = None) -> None:
        """As ``Optimizer.step``."""
        grads, rate = self._begin(grads, lr)
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


def _same_names(what: str, given: Mapping[str, Any], expected: Set[str]) -> None:
    """Refuse ``given`` unless its names are exactly the expected ones."""
    for problem, names in (
        ("lacks", expected - given.keys()),
        ("has the unknown", given.keys() - expected),
    ):
        if names:
            raise ValueError(f"{what} {problem} {', '.join(sorted(names))}")

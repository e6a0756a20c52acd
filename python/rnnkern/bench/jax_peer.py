# SPDX-License-Identifier: Apache-2.0
"""JAX as a peer: cells as the loop that JAX's users write, ``lax.scan`` under ``jit``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from rnnkern.bench.case import Case, Contender

# (parameters by kind, W_ih x_t + b, state) -> next state, whose first is h
Step: TypeAlias = Callable[[Mapping[str, Any], Any, tuple[Any, ...]], tuple[Any, ...]]


def scanned(cell: str) -> Callable[[Mapping[str, Any], Any], Any]:
    """Outputs (T, B, H) of x, from a layer's parameters by name, as a function that JAX can trace.

    The products with x are one, before the loop.

    Raises:
        KeyError: there is no such loop here.

    """
    import jax
    import jax.numpy as jnp

    step, states = STEPS[cell]

    def run(params: Mapping[str, Any], x: Any) -> Any:
        p = {name.removesuffix("_l0"): value for name, value in params.items()}
        zeros = (jnp.zeros((x.shape[1], p["weight_hh"].shape[1]), x.dtype),) * states

        def one(state: tuple[Any, ...], a: Any) -> Any:
            state = step(p, a, state)
            return state, state[0]

        return jax.lax.scan(one, zeros, x @ p["weight_ih"].T + p["bias"])[1]

    return run


def jax_contender(case: Case, threads: int) -> Contender | str:
    """A compiled loop, and its gradients where there is training, or why there is none."""
    problem = case.problem
    if problem.cell not in STEPS:
        return "has no loop of that cell here"
    if (problem.compute or problem.dtype) != "float32":
        return "is measured in float32 alone"
    if problem.ragged or problem.layers > 1 or problem.bidirectional:
        return "is measured on one layer, one direction and whole batches"
    started = _start(threads)
    if started is not None:
        return started
    import jax
    import jax.numpy as jnp

    params = {name: jnp.asarray(value) for name, value in case.layer.params.items()}
    x, dy, function = jnp.asarray(case.x), jnp.asarray(case.dy), scanned(problem.cell)

    def with_gradients(params: Any, x: Any, dy: Any) -> Any:
        y, pull = jax.vjp(function, params, x)
        grads, dx = pull(dy)
        return y, dx, grads

    infer, train = jax.jit(function), jax.jit(with_gradients)

    def work() -> Any:
        result = train(params, x, dy) if problem.training else infer(params, x)
        return jax.block_until_ready(result)

    def answer() -> list[Any]:
        if not problem.training:
            return [jax.device_get(work())]
        y, dx, grads = jax.device_get(work())
        return [y, dx, *(grads[name] for name in case.layer.params)]

    return Contender("jax", work, answer)


_threads: int | None = None  # of JAX in this process


def _start(threads: int) -> str | None:
    """Start JAX with so many threads, which it has for the life of a process; or why not."""
    global _threads
    if _threads is None:
        if "jax" in sys.modules:
            return "was started before the bench, with threads of its own"
        flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        os.environ["NPROC"] = str(threads)
        os.environ["JAX_PLATFORMS"] = "cpu"
        try:
            import jax  # noqa: F401
        except ImportError:
            return "is not installed"
        _threads = threads
    if _threads != threads:
        return f"has {_threads} thread(s) in this process already"
    return None


def _gates(p: Mapping[str, Any], a: Any, h: Any, gates: int) -> list[Any]:
    import jax.numpy as jnp

    parts: list[Any] = jnp.split(a + h @ p["weight_hh"].T, gates, axis=-1)
    return parts


def _rnn(p: Mapping[str, Any], a: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    import jax.numpy as jnp

    return (jnp.tanh(_gates(p, a, state[0], 1)[0]),)


def _simplified_gru(p: Mapping[str, Any], a: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp

    u, n = _gates(p, a, state[0], 2)
    u = jax.nn.sigmoid(u)
    return (u * jnp.tanh(n) + (1 - u) * state[0],)


def _mgu(p: Mapping[str, Any], a: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp

    (h,) = state
    units = h.shape[-1]
    w = p["weight_hh"]
    f = jax.nn.sigmoid(a[:, :units] + h @ w[:units].T)
    n = jnp.tanh(a[:, units:] + (f * h) @ w[units:].T)
    return (f * n + (1 - f) * h,)


def _gru(p: Mapping[str, Any], a: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp

    (h,) = state
    units = h.shape[-1]
    w = p["weight_hh"]
    r, u = jnp.split(jax.nn.sigmoid(a[:, : 2 * units] + h @ w[: 2 * units].T), 2, axis=-1)
    n = jnp.tanh(a[:, 2 * units :] + (r * h) @ w[2 * units :].T)
    return (u * n + (1 - u) * h,)


def _gru_after(p: Mapping[str, Any], a: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp

    (h,) = state
    r, u, n = jnp.split(a, 3, axis=-1)
    hr, hu, hn = jnp.split(h @ p["weight_hh"].T, 3, axis=-1)
    r, u = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(u + hu)
    return (u * jnp.tanh(n + r * (hn + p["bias_hn"])) + (1 - u) * h,)


def _lstm(p: Mapping[str, Any], a: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp

    h, c = state
    u, f, n, o = _gates(p, a, h, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(u) * jnp.tanh(n)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


# By our names, and how many arrays go from step to step.
STEPS: dict[str, tuple[Step, int]] = {
    "rnn": (_rnn, 1),
    "simplified-gru": (_simplified_gru, 1),
    "mgu": (_mgu, 1),
    "gru": (_gru, 1),
    "gru-after": (_gru_after, 1),
    "lstm": (_lstm, 2),
}

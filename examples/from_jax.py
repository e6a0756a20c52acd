# SPDX-License-Identifier: Apache-2.0
"""From JAX: a language model of Python's own manual, whose GRU is one call instead of a loop.

It has the loop's numbers and gradients; what it learned goes back to a layer, which needs no JAX.
"""

from pydoc_data import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnkern as rk
from rnnkern.jax import functional

codes = np.fromfile(topics.__file__, np.uint8) % 128
rows = np.random.default_rng(0).permutation(codes[: len(codes) // 65 * 65].reshape(-1, 65))
batches = [part.T for part in np.array_split(rows, len(rows) // 64)]  # of (65, 64) letters
gru, head = rk.GRU(128, 128, reset="after", seed=0), rk.Linear(128, 128, bias=False, seed=1)
apply, of_gru = functional(gru)
params = {"gru": of_gru, "head": jnp.asarray(head.params["weight"])}


def loop(w, x):
    """What `apply` takes the place of."""

    def step(h, x_t):
        r, u, n = jnp.split(x_t @ w["weight_ih_l0"].T + w["bias_l0"], 3, axis=-1)
        of_r, of_u, of_n = jnp.split(h @ w["weight_hh_l0"].T, 3, axis=-1)
        r, u = jax.nn.sigmoid(r + of_r), jax.nn.sigmoid(u + of_u)
        h = u * jnp.tanh(n + r * (of_n + w["bias_hn_l0"])) + (1 - u) * h
        return h, h

    return jax.lax.scan(step, jnp.zeros((x.shape[1], 128)), x)[::-1]


def loss(params, batch, run=apply):
    """Of every letter's guess at the next."""
    logits = run(params["gru"], jax.nn.one_hot(batch[:-1], 128))[0] @ params["head"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1:]).mean()


graded = jax.jit(jax.value_and_grad(loss), static_argnums=2)
first, expected = (graded(params, batches[0], run) for run in (apply, loop))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), first, expected)

adam = optax.adam(0.01)
state = adam.init(params)
for batch in batches:
    updates, state = adam.update(graded(params, batch, apply)[1], state)
    params = optax.apply_updates(params, updates)
gru.params.update(params["gru"])
head.params.update({"weight": params["head"]})
batch = batch.astype(np.int64)
value, _ = rk.Model(gru, head).loss_and_grads(batch[:-1], batch[1:])
print(f"{value / np.log(2):.2f} bits a letter; equally likely ones would take 7")
assert abs(value - loss(params, batch)) < 1e-4
assert value < 2.4, value

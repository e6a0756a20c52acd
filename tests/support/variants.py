# SPDX-License-Identifier: Apache-2.0
"""The cells with their options in float64 PyTorch: slow, plain, and differentiated by autograd.

Nothing here comes from rnnkern but a layer's options and parameters. What PyTorch has as a function
(hardsigmoid, elu, threshold and so on) is taken from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from support.reference import Array

Tensor = Any
Function = Callable[[Tensor], Tensor]

# By their names here; the numbers are those that a name may be given in brackets.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": torch.nn.functional.softsign,
    "softplus": lambda a: torch.logaddexp(a, torch.zeros_like(a)),  # softplus rounds above 20
    "identity": lambda a: a,
    "hard_sigmoid": lambda a, *n: torch.clamp(n[0] * a + n[1] if n else a / 6 + 0.5, 0, 1),
    "affine": lambda a, alpha, beta: alpha * a + beta,
    "scaled_tanh": lambda a, alpha, beta: alpha * torch.tanh(beta * a),
    "leaky_relu": torch.nn.functional.leaky_relu,
    "elu": torch.nn.functional.elu,
    "thresholded_relu": lambda a, alpha: torch.nn.functional.threshold(a, alpha, 0.0),
}


def function(text: str) -> Function:
    """Of its name, with its numbers in brackets where it has any."""
    name, _, numbers = text.partition("(")
    own = [float(n) for n in numbers.rstrip(")").split(",") if n.strip()]
    return lambda a: FUNCTIONS[name](a, *own)


class Direction:
    """One layer in one direction, with the options that go with it."""

    def __init__(self, layer: Any, place: int, params: dict[str, Tensor], ending: str) -> None:
        options = layer.config()

        def own(name: str, default: Any = None) -> Any:
            given = options.get(name, default)
            return given[place] if isinstance(given, (list, tuple)) else given

        self.kind = type(layer).__name__
        self.after = options.get("reset") == "after"
        self.coupled = options.get("coupled", False)
        self.clip, self.cell_clip = own("clip"), own("cell_clip")
        squash = own("nonlinearity") or own("activation", "tanh")
        self.squash = function(squash)
        self.gate = function(own("recurrent_activation", "sigmoid"))
        self.out = function(own("output_activation") or squash)
        self.w: dict[str, Any] = {
            k: params.get(k + ending) for k in ("weight_ih", "weight_hh", "bias", "bias_hn")
        }
        self.factors: Tensor = None  # (B, H)
        self.peepholes = params.get("weight_peephole" + ending)
        self.gains = [params.get(f"gain_{part}{ending}") for part in ("ih", "hh", "c")]
        self.shift_c = params.get("shift_c" + ending)

    def clipped(self, a: Tensor) -> Tensor:
        return a if self.clip is None else torch.clamp(a, -self.clip, self.clip)

    def step(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        def gate(a: Tensor) -> Tensor:
            return self.gate(self.clipped(a))

        def squash(a: Tensor) -> Tensor:
            return self.squash(self.clipped(a))

        def update(a: Tensor) -> Tensor:
            return 1 - gate(-a)

        h = state[0]
        seen = h if self.factors is None else h * self.factors  # by recurrent products
        units = h.shape[1]
        a = torch.cat(self.parts(x, "weight_ih", 0, 4), dim=1)
        if self.w["bias"] is not None:
            a = a + self.w["bias"]
        a = a.split(units, dim=1)
        if self.kind == "RNN":
            return [squash(a[0] + self.recurrent(seen, 0)[0])]
        if self.kind == "SimplifiedGRU":
            u, n = (
                update(a[0] + self.recurrent(seen, 0)[0]),
                squash(a[1] + self.recurrent(seen, 1)[0]),
            )
        elif self.kind == "MGU":
            u = gate(a[0] + self.recurrent(seen, 0)[0])
            n = squash(a[1] + self.recurrent(u * seen, 1)[0])
        elif self.kind == "GRU":
            of_r, of_u = self.recurrent(seen, 0, 2)
            r, u = gate(a[0] + of_r), update(a[1] + of_u)
            if self.after:
                own = 0.0 if self.w["bias_hn"] is None else self.w["bias_hn"]
                n = squash(a[2] + r * (self.recurrent(seen, 2)[0] + own))
            else:
                n = squash(a[2] + self.recurrent(r * seen, 2)[0])
        else:
            return self.lstm(a, seen, state[1])
        return [u * n + (1 - u) * h]

    def recurrent(self, h: Tensor, first: int, count: int = 1) -> Any:
        """Of the gates [first, first + count): their product with h, normalised as one."""
        return self.parts(h, "weight_hh", first, count)

    def parts(self, rows: Tensor, matrix: str, first: int, count: int) -> Any:
        """Of so many gates: W rows, by gate."""
        w = self.w[matrix]
        units = self.w["weight_hh"].shape[1]
        gain = self.gains[matrix == "weight_hh"]
        of_gates = slice(first * units, (first + count) * units)
        sums = rows @ w[of_gates].T
        if gain is None:
            return sums.split(units, dim=1)
        parts, gain = [], gain[of_gates]
        for of, own in zip(self.blocks(sums, first), self.blocks(gain, first), strict=True):
            parts += torch.nn.functional.layer_norm(of, own.shape, weight=own).split(units, dim=-1)
        return parts

    def blocks(self, sums: Tensor, first: int) -> Any:
        """What is normalised as one: a GRU's gates and its candidate, an LSTM's all together."""
        units = self.w["weight_hh"].shape[1]
        apart = {"GRU": 2, "MGU": 1, "SimplifiedGRU": 1}.get(self.kind, 4) - first
        last = sums[..., : apart * units], sums[..., max(apart, 0) * units :]
        return [block for block in last if block.shape[-1]]

    def lstm(self, a: Any, h: Tensor, c: Tensor) -> list[Tensor]:
        sums = [own + part for own, part in zip(a, self.recurrent(h, 0, len(a)), strict=True)]
        p = self.peepholes
        u_sum, f_sum, n_sum, o_sum = sums if len(sums) == 4 else (sums[0], None, *sums[1:])
        u_sum = u_sum if p is None else u_sum + p[0] * c
        u = self.gate(self.clipped(u_sum))
        if f_sum is None:
            f = 1 - u
        else:
            f = self.gate(self.clipped(f_sum if p is None else f_sum + p[1] * c))
        c = f * c + u * self.squash(self.clipped(n_sum))
        if self.cell_clip is not None:
            c = torch.clamp(c, -self.cell_clip, self.cell_clip)
        o = self.gate(self.clipped(o_sum if p is None else o_sum + p[-1] * c))
        gain = self.gains[2]
        if gain is None:
            return [o * self.out(c), c]
        layer_norm = torch.nn.functional.layer_norm
        return [o * self.out(layer_norm(c, gain.shape, gain, self.shift_c)), c]


def run(
    layer: Any,
    x: Array,
    state: tuple[Array, ...],
    lengths: Array | None = None,
    dy: Array | None = None,
    dstate: tuple[Array, ...] | None = None,
    h_factors: Array | None = None,
    keeps: list[Array] | None = None,
) -> dict[str, Array]:
    """All that a call and its backward pass give, by name; x (T, B, I), states (L·D, B, H).

    `h_factors`, as the states, are of h as recurrent products take it; `keeps` of h, and of c, say
    where (L·D, T, B, H) a state keeps its value.
    """
    torch.set_num_threads(1)  # more of them wait long for each other where cores are shared
    params = {
        k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in layer.params.items()
    }
    inputs = torch.tensor(x.astype(np.float64), requires_grad=True)
    given = [torch.tensor(s.astype(np.float64), requires_grad=True) for s in state]
    steps, batch = x.shape[:2]
    ends = torch.as_tensor(np.full(batch, steps) if lengths is None else lengths)
    directions = 2 if layer.bidirectional else 1
    y, last = inputs, []
    for k in range(layer.num_layers):
        outputs = []
        for d in range(directions):
            ending = f"_l{k}" + "_reverse" * d
            own = Direction(layer, d, params, ending)
            if h_factors is not None:
                own.factors = torch.tensor(h_factors[k * directions + d].astype(np.float64))
            now, rows = [s[k * directions + d] for s in given], [None] * steps
            for t in reversed(range(steps)) if d else range(steps):
                live = (t < ends)[:, None]
                new = own.step(y[t], now)
                for part, kept in enumerate(keeps or ()):
                    at = torch.tensor(kept[k * directions + d, t])
                    new[part] = torch.where(at, now[part], new[part])
                rows[t] = torch.where(live, new[0], 0.0)
                now = [torch.where(live, a, b) for a, b in zip(new, now, strict=True)]
            outputs.append(torch.stack(rows))
            last.append(now)
        y = torch.cat(outputs, dim=2)
    ends_of = [torch.stack(s) for s in zip(*last, strict=True)]
    loss = (y * torch.tensor(dy if dy is not None else np.zeros(y.shape))).sum()
    for s, ds in zip(ends_of, dstate or (), strict=False):
        loss = loss + (s * torch.tensor(ds)).sum()
    if dy is not None or dstate is not None:
        loss.backward()
    found = {"y": y, "dx": inputs.grad}
    for name, s, g in zip(("h", "c"), ends_of, given, strict=False):
        found |= {f"{name}_n": s, f"d{name}_0": g.grad}
    found |= {f"d{name}": p.grad for name, p in params.items()}
    return {k: v.detach().numpy() for k, v in found.items() if v is not None}

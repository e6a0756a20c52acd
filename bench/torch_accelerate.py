# SPDX-License-Identifier: Apache-2.0
"""A PyTorch script before and after one line: ``rnnkern.torch.accelerate(model)``.

``python bench/torch_accelerate.py --json FILE``: a model and its accelerated copy take turns in one
process, with PyTorch's threads and ours at what the machine has; losses and gradients are compared.
The last lines say what a module's call costs over the same call of our layer from NumPy, and what
PyTorch's autograd takes by itself, for a function that gives as much and computes nothing.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rnnkern as rk
import rnnkern.torch as rt
from rnnkern import record
from rnnkern.bench.timing import Call, alternate

_SIZES = ((1, 100, 64), (16, 50, 128), (32, 50, 256))
_SECONDS = 0.5  # of every contender


class Model(torch.nn.Module):  # type: ignore[misc]
    """A recurrent layer and a head, as a script has them."""

    def __init__(self, cell: str, units: int) -> None:
        super().__init__()
        self.rnn = getattr(torch.nn, cell)(units, units)
        self.head = torch.nn.Linear(units, 1)

    def forward(self, x: Any) -> Any:
        y, _ = self.rnn(x)
        y = y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y
        return self.head(y)


def step(model: Any, x: Any) -> Any:
    """One of training."""
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return loss


def infer(model: Any, x: Any) -> Any:
    with torch.inference_mode():
        return model(x)


def measure(cell: str, batch: int, steps: int, units: int) -> dict[str, Any]:
    torch.manual_seed(0)
    before = Model(cell, units)
    after = rt.accelerate(copy.deepcopy(before))  # the one line
    x = torch.randn(steps, batch, units)
    lengths = torch.linspace(steps, steps // 4, batch).long()
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    for given in (x, packed):
        torch.testing.assert_close(step(after, given), step(before, given), rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(after.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    works: dict[str, tuple[Any, Any]] = {"infer": (infer, x), "train": (step, x)}
    if batch > 1:
        works["train, packed"] = (step, packed)
    line: dict[str, Any] = {"cell": cell, "batch": batch, "steps": steps, "hidden": units}
    for work, (call, given) in works.items():
        contenders: dict[str, Call] = {
            "before": lambda c=call, g=given: c(before, g),  # type: ignore[misc]
            "after": lambda c=call, g=given: c(after, g),  # type: ignore[misc]
        }
        line[work] = {n: s.describe() for n, s in alternate(contenders, _SECONDS).items()}
    return line


class _Nothing(torch.autograd.Function):  # type: ignore[misc]
    """What PyTorch takes for any function with four parameters that gives y and a state."""

    @staticmethod
    def forward(ctx: Any, x: Any, h: Any, c: Any, *weights: Any) -> Any:
        y, *last = (torch.from_numpy(np.empty(x.shape, np.float32)) for _ in range(3))
        ctx.shapes = [w.shape for w in weights]
        ctx.save_for_backward(x, y)
        ctx.set_materialize_grads(False)
        return y, *last

    @staticmethod
    def backward(ctx: Any, dy: Any, dh: Any, dc: Any) -> Any:
        assert ctx.saved_tensors
        grads = [torch.from_numpy(np.empty(s, np.float32)) for s in ctx.shapes]
        return None, None, None, *grads


def overhead(cell: str) -> dict[str, Any]:
    """Calls of one step of one row: the module's, the layer's, and one that only allocates."""
    module = getattr(rt, cell)(16, 16)
    layer = rk.from_torch(module)
    x, dy = torch.randn(1, 1, 16), torch.ones(1, 1, 16)
    numbers, gradient = x.numpy(), dy.numpy()
    weights = list(module.parameters())

    def trained(y: Any) -> None:
        module.zero_grad()
        y.backward(dy)

    def frozen() -> Any:
        with torch.no_grad():
            return module(x)

    contenders: dict[str, Call] = {
        "infer, layer": lambda: layer(numbers),
        "infer, module": frozen,
        "forward, layer": lambda: layer.forward(numbers),
        "forward, module": lambda: module(x),
        "train, layer": lambda: layer.forward(numbers)[2].backward(gradient),
        "train, module": lambda: trained(module(x)[0]),
        "train, nothing": lambda: trained(_Nothing.apply(x, None, None, *weights)[0]),
    }
    times = alternate(contenders, 0.3)
    return {"cell": cell, **{name: spread.describe() for name, spread in times.items()}}


def table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    header = ["cell", "B, T, H", "inference", "before", "training", "before", "packed", "before"]
    rows = []
    for line in lines:
        row = [line["cell"], f"{line['batch']}, {line['steps']}, {line['hidden']}"]
        for work in ("infer", "train", "train, packed"):
            found = line.get(work)
            row += (
                [f"{found[n]['ms']:.2f} ms" for n in ("after", "before")] if found else ["–", "–"]
            )
        rows.append(row)
    return {"header": header, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    np.seterr(all="ignore")
    lines = [measure(cell, *sizes) for cell in ("LSTM", "GRU") for sizes in _SIZES]
    for row in table(lines)["rows"]:
        print(" | ".join(row))
    costs = [overhead(cell) for cell in ("LSTM", "GRU")]
    for cost in costs:
        print(cost["cell"], {n: f"{1e3 * v['ms']:.1f} µs" for n, v in cost.items() if n != "cell"})
    if options.json is not None:
        parts = {
            "facts": record.facts()
            | {"torch": torch.__version__, "threads": torch.get_num_threads()},
            "models": lines,
            "overhead": costs,
            "table": table(lines),
        }
        record.write(options.json, parts)


if __name__ == "__main__":
    main()

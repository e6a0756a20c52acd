# SPDX-License-Identifier: Apache-2.0
"""The adder's training step against PyTorch: the same model, parameters, batch and data.

PyTorch's is written well: tokens through an embedding (fixed to one-hot rows, which is the model's
input), one fused call each for encoder and decoder, fused Adam, gradients clipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rnnkern import Adam, Gradients, Seq2Seq, clip_grad_norm, softmax_cross_entropy
from rnnkern._checks import Array
from rnnkern.adder import Adder, Encoding, Settings
from rnnkern.bench.case import Contender, compare
from rnnkern.bench.report import Line, duration, table
from rnnkern.bench.timing import alternate
from rnnkern.bench.torch_peer import KINDS, as_torch, from_torch, set_peer_threads

CELLS = ("lstm", "gru-after")  # unless others are asked for
_LR, _CLIP = 1e-3, 1.0
_TOLERANCE = {None: 1e-3, "bfloat16": 0.1}  # of all gradients, norm-wise
_PARTS = ("forward", "loss", "backward", "clipping", "Adam")

Batch = tuple[Array, Array, Array]  # question (S, B), what the decoder is fed and answer (T, B)


def make_batch(adder: Adder) -> Batch:
    """The first batch of a default run."""
    a, b = adder.pairs.batch(adder.settings.batch, seed=0, step=0)
    answers = adder.encoding.answers(a + b)
    return adder.encoding.questions(a, b), adder.encoding.fed(answers), answers


class Ours:
    """The step of ``rnnkern.adder``, with a clock between its parts."""

    def __init__(self, model: Seq2Seq, batch: Batch) -> None:
        self._model, self._batch = model, batch
        self._optimizer = Adam(model.params, _LR)
        self.parts = dict.fromkeys(_PARTS, 0.0)

    def gradients(self) -> list[Array]:
        """Of the loss in all parameters, in the order of their names; nothing is changed."""
        grads = self._gradients(lambda _: None).params
        return [grads[name] for name in sorted(grads)]

    def step(self) -> None:
        """Take a step; the seconds of each part are added up."""
        last = time.perf_counter()

        def done(part: str) -> None:
            nonlocal last
            now = time.perf_counter()
            self.parts[part] += now - last
            last = now

        grads = self._gradients(done)
        clip_grad_norm(grads, _CLIP)
        done("clipping")
        self._optimizer.step(grads)
        done("Adam")

    def _gradients(self, done: Callable[[str], None]) -> Gradients:
        question, fed, answer = self._batch
        logits, tape = self._model.forward(question, None, fed)
        done("forward")
        _, dlogits = softmax_cross_entropy(logits, answer)
        done("loss")
        grads = tape.backward(dlogits)
        done("backward")
        return grads


class Torchs:
    """The same step in PyTorch."""

    def __init__(self, model: Seq2Seq, cell: str, batch: Batch, compute: str | None) -> None:
        import torch

        self._torch, self._compute = torch, compute
        self._question, self._fed, self._answer = (torch.from_numpy(array) for array in batch)
        self._cell = cell
        self._one_hot = torch.eye(Encoding.VOCABULARY)
        kind = getattr(torch.nn, KINDS[cell].layer)
        self._encoder, self._decoder = (
            kind(Encoding.VOCABULARY, model.output.in_features) for _ in range(2)
        )
        self._output = torch.nn.Linear(model.output.in_features, Encoding.VOCABULARY)
        self._named = {
            f"{part}.{name}": value
            for part, module in (
                ("encoder", self._encoder),
                ("decoder", self._decoder),
                ("output", self._output),
            )
            for name, value in module.named_parameters()
        }
        with torch.no_grad():
            for name, value in self._named.items():
                value.copy_(torch.from_numpy(self._theirs(name, model.params)))
        # A second bias would learn what the first does; the model has one, but for a GRU's
        # candidate.
        self._learnt = [
            value
            for name, value in self._named.items()
            if not name.endswith("bias_hh_l0") or KINDS[cell].own_bias
        ]
        self._optimizer = torch.optim.Adam(self._learnt, lr=_LR, fused=True)

    def gradients(self) -> list[Array]:
        """As ``Ours.gradients``."""
        self._backward()
        theirs = {name: value.grad.numpy() for name, value in self._named.items()}
        heads = {name: grad for name, grad in theirs.items() if name.startswith("output")}
        layers = {name: grad for name, grad in theirs.items() if name not in heads}
        grads = {**heads, **from_torch(self._cell, layers)}
        return [grads[name].copy() for name in sorted(grads)]

    def step(self) -> None:
        """Take a step."""
        self._backward()
        self._torch.nn.utils.clip_grad_norm_(self._learnt, _CLIP)
        self._optimizer.step()

    def _backward(self) -> None:
        torch = self._torch
        for value in self._named.values():
            value.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=self._compute == "bfloat16"):
            embed = torch.nn.functional.embedding
            _, state = self._encoder(embed(self._question, self._one_hot))
            y, _ = self._decoder(embed(self._fed, self._one_hot), state)
            logits = self._output(y)
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self._answer.flatten()
        )
        loss.backward()

    def _theirs(self, name: str, params: Mapping[str, Array]) -> Array:
        """A parameter of ours as PyTorch holds it."""
        return params[name] if name.startswith("output") else as_torch(self._cell, params, name)


def cases(cells: Sequence[str] | None) -> list[tuple[str, str | None]]:
    """What is measured: the adder's cell and how products are done.

    ``None`` takes ``CELLS``, of which the first is measured in bfloat16 too.
    """
    narrow = CELLS[:1] if cells is None else cells
    return [(cell, None) for cell in cells or CELLS] + [(cell, "bfloat16") for cell in narrow]


def measure(cell: str, threads: int, seconds: float, compute: str | None = None) -> dict[str, Any]:
    """One line of the report; leaves one thread set.

    Args:
        cell: A name out of ``rnnkern.cells.CELLS``.
        threads: Of both contenders.
        seconds: To spend on each, about.
        compute: How products are done: ``None`` for float32, or ``"bfloat16"``.

    Raises:
        DisagreementError: PyTorch's gradients are others.

    """
    adder = Adder(Settings(cell=cell, compute=compute))
    model, batch = adder.model, make_batch(adder)
    set_peer_threads(threads)
    ours = Ours(model, batch)
    able = [Contender("rnnkern", ours.step, ours.gradients)]
    theirs = _torchs(model, cell, batch, compute)
    absent = {"torch": theirs} if isinstance(theirs, str) else {}
    if not isinstance(theirs, str):
        able.append(Contender("torch", theirs.step, theirs.gradients))
    compare(able, _TOLERANCE[compute])
    times = alternate({contender.name: contender.run for contender in able}, seconds)
    set_peer_threads(1)
    total = math.fsum(ours.parts.values())
    return {
        "cell": cell if compute is None else f"{cell}, {compute}",
        "threads": threads,
        "results": {name: spread.describe() for name, spread in times.items()},
        "shares": {part: seconds / total for part, seconds in ours.parts.items()},
        "absent": absent,
    }


def _torchs(model: Seq2Seq, cell: str, batch: Batch, compute: str | None) -> Torchs | str:
    """PyTorch's step, or why there is none."""
    if cell not in KINDS:
        return "has no such cell"
    try:
        theirs = Torchs(model, cell, batch, compute)
        theirs.gradients()
    except ImportError:
        return "is not installed"
    except RuntimeError as error:  # its bfloat16 LSTM needs instructions for it
        return f"fails: {str(error).split('. ')[0]}"
    return theirs


def adder_table(lines: list[Line]) -> str:
    """Both times, their ratio, and where ours goes."""
    rows = []
    for line in lines:
        results = line["results"]
        ours = results["rnnkern"]["ms"]
        theirs = results["torch"]["ms"] if "torch" in results else None
        rows.append(
            [
                line["cell"],
                str(line["threads"]),
                duration(ours / 1e3),
                "–" if theirs is None else duration(theirs / 1e3),
                "–" if theirs is None else f"{theirs / ours:.2f}",
                ", ".join(f"{part} {share:.0%}" for part, share in line["shares"].items()),
            ]
        )
    return table(["cell", "threads", "rnnkern", "torch", "times faster", "of our step"], rows)

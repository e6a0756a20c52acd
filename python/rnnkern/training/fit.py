# SPDX-License-Identifier: Apache-2.0
"""Training in one call: a loop over batches that may as well be written by hand.

``advance`` is a step of it: loss and gradients, clipping, the optimizer. The rest is when to look
at the validation data, and when to keep what (`run.py`).
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rnnkern._checks import boolean, finite_float, positive_int
from rnnkern.devices import get_device
from rnnkern.models.model import Model
from rnnkern.progress import Progress
from rnnkern.training.batches import Batches
from rnnkern.training.clip import clip_grad_norm
from rnnkern.training.history import OWN, History
from rnnkern.training.optim import Adam, Optimizer
from rnnkern.training.ranks import Ranks
from rnnkern.training.run import Run


def fit(
    model: Any,
    data: Any,
    *,
    valid: Any = None,
    epochs: int = 10,
    optimizer: Optimizer | None = None,
    clip: float | None = 1.0,
    loss: Any = None,
    measures: Mapping[str, Callable[[Any], float]] | None = None,
    patience: int | None = None,
    path: str | os.PathLike[str] | None = None,
    resume: bool = False,
    save_every: float = 60.0,
    seed: int = 0,
    progress: bool = True,
    comm: Any = None,
) -> History:
    """Train a model on batches, epoch after epoch.

    A run with a ``path`` that is interrupted, by Ctrl-C or in any other way, goes on from its last
    checkpoint with ``resume=True``, and ends bit for bit as if it had never been: give it the same
    arguments again.

    Args:
        model: A `Model` or `Seq2Seq`, changed in place.
        data: What to learn from: `batches`; or a list of ``(x, lengths, targets)``, perhaps with a
            mask as a fourth; or a function of the epoch's number that gives such ones.
        valid: The same, not learned from: its loss is looked at after every epoch. In the end the
            model has the parameters with which that was least.
        epochs: How often to go through the data.
        optimizer: Of the model's parameters, with the learning rate, a number or a `Schedule`;
            ``None`` is ``Adam(model)``.
        clip: Bound on the norm of the gradients; ``None`` is none.
        loss: As of the model's ``loss_and_grads``; ``None`` is the model's own.
        measures: Functions of the model, by name, whose values after every epoch are noted.
        patience: Stop after so many epochs in turn without a lower loss on ``valid``.
        path: Where checkpoints go, one file: as ``load`` reads it the best model so far, with all
            that a resumed run needs. It is written at the beginning, after every epoch, and now
            and then; a file that is there is replaced.
        resume: Whether to go on with the run in ``path``, where there is one.
        save_every: Seconds between checkpoints within an epoch.
        seed: Of the masks of dropout.
        progress: Whether to show a bar and a line for each epoch; where the output is no terminal
            nothing is shown.
        comm: mpi4py's ``MPI.COMM_WORLD``, where ``mpiexec`` started several processes: each takes
            its share of every batch, and all end with one model, which one alone would have got but
            for rounding. The first shows progress and writes checkpoints, from which any number of
            processes goes on. See `Ranks`.

    Returns:
        The `History`, with the epochs before a resumption too.

    Raises:
        ArithmeticError: The gradients are no longer finite; the last step changed nothing, and the
            last checkpoint is as it was.
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range; there is no batch; the checkpoint is of another
            model or optimizer.
        FormatError: The file is no checkpoint of ``fit``.
        OSError: A checkpoint cannot be read or written.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 4, (64, 5))
        >>> model = rk.Model(rk.GRU(4, 8, seed=0), rk.Linear(8, 4, seed=1), readout="last")
        >>> data = rk.batches(x, x[:, -1], 16, shuffle=True, seed=0)
        >>> history = rk.fit(model, data, epochs=20, optimizer=rk.Adam(model, lr=0.03))
        >>> bool(history["loss"][-1] < 0.3 * history["loss"][0])
        True

    """
    positive_int("epochs", epochs)
    finite_float("save_every", save_every, minimum=0.0)
    bound = sys.float_info.max
    if clip is not None:
        bound = finite_float("clip", clip, minimum=0.0, exclusive=True)
    if patience is not None:
        positive_int("patience", patience)
        if valid is None:
            raise ValueError("patience needs valid, the data whose loss it is about, got None")
    if boolean("resume", resume) and path is None:
        raise ValueError("resume needs a path, where the checkpoint is, got None")
    if optimizer is None:
        optimizer = Adam(model)
    measures = dict(measures or {})
    for name in measures:
        if name in OWN:
            raise ValueError(f"measures must have names other than {', '.join(OWN)}, got {name!r}")
    seed = positive_int("seed", seed, minimum=0)
    boolean("progress", progress)
    for name, given in (("data", data), ("valid", valid)):
        _check_filling(name, given, model)

    run = Run(model, optimizer, list(measures), keep_best=valid is not None)
    with Ranks(comm) as ranks, Progress(shown=progress and ranks.is_first) as bar:
        if len(set(ranks.gather(getattr(data, "seed", 0)))) > 1:
            raise ValueError("data must be shuffled by one seed on all ranks: batches(..., seed=0)")
        if ranks.is_first and path is not None:
            if resume and Path(path).exists():
                run.load(path)
            run.save(path)
        run.share(ranks)
        began = saved = time.perf_counter()
        before = run.seconds
        while run.epoch < epochs and (patience is None or run.without_gain < patience):
            for batch in batches_of(data, run.epoch, run.batch):
                rate = optimizer.lr
                key = dropout_key(seed, optimizer.steps, ranks.rank)
                run.note(*advance(model, batch, optimizer, rate, bound, key, loss, ranks))
                run.lr = rate
                now = time.perf_counter()
                run.seconds = before + now - began
                bar.show((run.epoch + run.done(data)) / epochs, run.text(epochs))
                if ranks.is_first and path is not None and now - saved >= save_every:
                    run.save(path)
                    saved = time.perf_counter()
            if run.batch == 0:
                raise ValueError(
                    f"data must give a batch in every epoch, got none in epoch {run.epoch}: a "
                    "generator is used up after one, batches(...), a list or a function is not"
                )
            of_valid = [] if valid is None else [mean_loss(model, valid, loss, ranks)]
            run.end_epoch(of_valid, [ranks.first(float(of(model))) for of in measures.values()])
            if ranks.is_first and path is not None:
                run.save(path)
                saved = time.perf_counter()
            if bar.visible:
                bar.line(run.history.text())
    run.take_best()
    return run.history


def _leaves_out_x_gradients(model: Any) -> bool:
    """Whether a model can be told that the gradient in x is not needed."""
    return isinstance(model, Model) and _has_argument(type(model).loss_and_grads, "x_gradient")


@cache
def _has_argument(function: Callable[..., Any], name: str) -> bool:
    arguments = inspect.signature(function).parameters.values()
    return any(a.name == name or a.kind is a.VAR_KEYWORD for a in arguments)


def advance(
    model: Any,
    batch: Any,
    optimizer: Optimizer,
    lr: float,
    clip: float,
    key: int,
    loss: Any,
    ranks: Ranks,
) -> tuple[float, float]:
    """One step of training: the mean loss before it, and how many targets that is over.

    Raises:
        ArithmeticError: The gradients are not finite; nothing was changed.

    """
    x, targets, lengths, mask = own_part(model, batch, ranks)
    # A Seq2Seq, whose x is tokens, has no gradient in it to leave out; the method of a subclass
    # need not have the argument.
    unneeded = {"x_gradient": False} if _leaves_out_x_gradients(model) else {}
    value, grads = model.loss_and_grads(
        x, targets, lengths, mask=mask, dropout_key=key, loss=loss, **unneeded
    )
    places = model.places(x, targets, lengths, mask=mask)
    (mean,) = ranks.average(grads, places, [float(value)])
    if not math.isfinite(float(clip_grad_norm(grads, clip))):
        raise ArithmeticError(
            f"training diverged in step {optimizer.steps}: the gradients are not finite; a lower "
            "learning rate or a lower clip may help"
        )
    optimizer.step(grads, lr)
    return mean, sum(ranks.gather(places))


def mean_loss(model: Any, data: Any, loss: Any, ranks: Ranks) -> float:
    """The mean loss over all targets of some data, which are not learned from."""
    total, places = 0.0, 0
    for batch in batches_of(data, 0, 0):
        x, targets, lengths, mask = own_part(model, batch, ranks)
        count = model.places(x, targets, lengths, mask=mask)
        total += count * float(model.evaluate(x, targets, lengths, mask=mask, loss=loss))
        places += count
    totals, counts = zip(*ranks.gather((total, places)), strict=True)
    if sum(counts) == 0:
        raise ValueError("valid must hold a target that counts, got none")
    mean: float = math.fsum(totals) / sum(counts)
    return mean


def _check_filling(name: str, data: Any, model: Any) -> None:
    """Refuse answers whose filling a model would learn as if it were tokens of them."""
    eos = getattr(model, "eos", None)
    if eos is None or not isinstance(data, Batches) or not data.fills_targets:
        return
    if data.target_pad != eos:
        raise ValueError(
            f"{name} must fill answers with the model's eos, {eos}, got {data.target_pad}: "
            f"batches(..., target_pad={eos})"
        )


def batches_of(data: Any, epoch: int, start: int) -> Iterable[Any]:
    """The batches of an epoch from the ``start``-th on."""
    if isinstance(data, Batches):
        return data.epoch(epoch, start)
    given = data(epoch) if callable(data) else data
    if not isinstance(given, Iterable):
        raise TypeError(
            "data must be batches(...), a list of (x, lengths, targets), or a function of the "
            f"epoch's number that gives one, got {type(given)!r}"
        )
    return islice(given, start, None)


def own_part(model: Any, batch: Any, ranks: Ranks) -> tuple[Any, Any, Any, Any]:
    """A rank's share of a batch, its x, targets, lengths and mask, where the model is.

    Lengths stay with the host.
    """
    if not isinstance(batch, (list, tuple)) or len(batch) not in (3, 4):
        raise TypeError(
            "data must hold (x, lengths, targets), perhaps with a mask as a fourth, got "
            f"{type(batch)!r}: batches(x, targets) makes such ones of sequences"
        )
    x, lengths, targets, *rest = batch
    mask = rest[0] if rest else None
    if ranks.size > 1:
        x, targets, lengths, mask = model.part(x, targets, lengths, mask, ranks.share)
    if model.device != "cpu":
        put = get_device(model.device).put
        x, targets, mask = put(x), put(targets), None if mask is None else put(mask)
    return x, targets, lengths, mask


def dropout_key(seed: int, step: int, rank: int) -> int:
    """A step's own, below 2**63, and a rank's."""
    words = np.random.SeedSequence([seed, step, *([rank] if rank else [])])
    return int(words.generate_state(1, np.uint64)[0]) >> 1

# SPDX-License-Identifier: Apache-2.0
"""``rnnkern adder train|ask|evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rnnkern._checks import positive_int
from rnnkern.adder.model import Adder
from rnnkern.adder.picture import plot_training
from rnnkern.adder.settings import Settings
from rnnkern.adder.training import HELD_OUT_SAMPLE, Training, train
from rnnkern.cells import CELLS
from rnnkern.devices import NAMES
from rnnkern.machine import get_num_threads
from rnnkern.plot import require_matplotlib
from rnnkern.progress import Progress, folded
from rnnkern.training.ranks import Ranks, launched_ranks

_MODEL = Path("adder.safetensors")
_METAVARS = {int: "N", float: "X", str: "NAME"}
_TRAIN_FIRST = "train one first: rnnkern adder train"
_MOST_PAIRS = 10**8  # that ``evaluate --all`` asks


def configure(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``rnnkern adder`` its actions and their options."""
    parser.description = (
        "A model that learns to add from examples: 'rnnkern adder train' trains one in a minute "
        "or two, 'rnnkern adder ask \"535+61\"' asks it."
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--model", type=Path, default=_MODEL, metavar="FILE", help="the model (%(default)s)"
    )
    shared.add_argument("--threads", type=int, metavar="N", help="threads to compute with")
    shared.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help=f"where to compute, one of {', '.join(NAMES)} (%(default)s)",
    )

    learn = actions.add_parser("train", parents=[shared], help="train a model from scratch")
    learn.set_defaults(run=_train)
    _add_settings(learn)
    learn.add_argument("--resume", action="store_true", help="go on with the run in FILE")
    learn.add_argument("--plot", type=Path, metavar="PNG", help="draw the run at its end")
    for name, default in (("save", 10.0), ("report", 2.0)):
        learn.add_argument(
            f"--{name}-every",
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"time between {'checkpoints' if name == 'save' else 'reports'} (%(default)s)",
        )

    ask = actions.add_parser("ask", parents=[shared], help="ask the model a sum")
    ask.set_defaults(run=_ask)
    ask.add_argument("question", nargs="+", help='a question, as "535+61"')

    judge = actions.add_parser("evaluate", parents=[shared], help="count the right answers")
    judge.set_defaults(run=_evaluate)
    which = judge.add_mutually_exclusive_group()
    which.add_argument(
        "--pairs",
        type=int,
        default=HELD_OUT_SAMPLE,
        metavar="N",
        help="held-out pairs to ask (%(default)s)",
    )
    which.add_argument("--all", action="store_true", help="ask every pair there is")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option per field of ``Settings``, absent unless given, so that a resume can compare."""
    helps = {
        "digits": "the most digits of a number, 1 to 6",
        "cell": f"one of {', '.join(CELLS)}",
        "hidden": "hidden size",
        "layers": "stacked layers of encoder and decoder",
        "bidirectional": "let the encoder read both ways",
        "attention": "let the decoder see all that the encoder gave (Luong et al. 2015)",
        "steps": "length of the run in steps",
        "minutes": "length of the run in minutes, instead of steps",
        "batch": "questions per step",
        "lr": "the highest learning rate of the run",
        "clip": "bound on the norm of the gradients",
        "compute": "bfloat16, to round the operands of the cells' products",
        "seed": "seed of initial values and questions",
        "share": "share of all pairs to learn from; the others are held out",
    }
    length = parser.add_mutually_exclusive_group()
    for field in dataclasses.fields(Settings):
        target = length if field.name in ("steps", "minutes") else parser
        if isinstance(field.default, bool):
            target.add_argument(
                f"--{field.name}",
                action="store_true",
                default=argparse.SUPPRESS,
                help=helps[field.name],
            )
        else:
            kind, default = type(field.default), f" ({field.default})"
            if field.default is None:
                kind, default = (str if field.name == "compute" else float), ""
            target.add_argument(
                f"--{field.name}",
                type=kind,
                default=argparse.SUPPRESS,
                metavar=_METAVARS[kind],
                help=helps[field.name] + default,
            )


def _train(options: argparse.Namespace) -> None:
    if options.plot is not None:
        require_matplotlib()
    ranks = launched_ranks()
    try:
        _train_with(ranks, options)
    except BaseException as error:
        if ranks.size == 1:
            raise
        ranks.end(str(error) or type(error).__name__)


def _train_with(ranks: Ranks, options: argparse.Namespace) -> None:
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in vars(options).items() if name in names}
    begin = _resumed if options.resume else _fresh
    training = begin(options.model, given, options.device, ranks)
    if ranks.size > 1 and ranks.is_first:
        print(
            f"{ranks.size} ranks, {get_num_threads()} threads each at most; should one be lost, "
            f"--resume goes on from {options.model} with any number of them",
            flush=True,
        )
    try:
        score = train(
            training,
            options.model,
            save_every=options.save_every,
            report_every=options.report_every,
        )
    except KeyboardInterrupt:
        if ranks.is_first:
            print(
                f"go on from the last checkpoint: --resume --model {options.model}", file=sys.stderr
            )
        raise
    if not ranks.is_first:
        return
    print(
        f"{training.step:,} steps in {training.seconds:.1f} s; whole answers to held-out "
        f"questions: {score}"
    )
    if score.wrong:
        print(folded(f"wrong, with the right answer behind: {', '.join(score.wrong)}", 4))
    question = "535+61" if training.adder.settings.digits >= 3 else "3+4"
    where = "" if options.model == _MODEL else f" --model {options.model}"
    print(f'the model is in {options.model}; ask it: rnnkern adder ask{where} "{question}"')
    if options.plot is not None:
        settings = training.adder.settings
        title = f"{settings.cell}, hidden size {settings.hidden}, {settings.digits} digits"
        plot_training(options.plot, title, np.array(training.history))


def _fresh(path: Path, given: dict[str, Any], device: str, ranks: Ranks) -> Training:
    """A new run; a model that is in its way is set aside, not lost."""
    training = Training(Adder(Settings(**given), device=device), ranks=ranks)
    target = path.resolve() if path.is_symlink() else path
    if ranks.is_first and target.is_file():
        aside = target.with_suffix(f".previous{target.suffix}")
        target.replace(aside)
        print(f"the earlier {target} is now {aside}")
    return training


def _resumed(path: Path, given: dict[str, Any], device: str, ranks: Ranks) -> Training:
    """The run of a checkpoint, whose settings must not be given another value."""
    training = _loaded(path, device, "begin a run without --resume", ranks)
    for name, value in given.items():
        kept = getattr(training.adder.settings, name)
        if value != kept:
            raise ValueError(
                f"--{name} {value} was given, but the run in {path} has {name} {kept}: "
                "a resumed run keeps its settings"
            )
    return training


def _loaded(path: Path, device: str, remedy: str, ranks: Ranks | None = None) -> Training:
    """The run of a checkpoint; where there is none the error says what to do."""
    try:
        return Training.load(path, device=device, ranks=ranks)
    except FileNotFoundError as error:
        text = f"there is no model here yet; {remedy}"
        raise FileNotFoundError(error.errno, text, error.filename) from None


def _ask(options: argparse.Namespace) -> None:
    adder = _loaded(options.model, options.device, _TRAIN_FIRST).adder
    for question in options.question:
        print(adder.ask(question))


def _evaluate(options: argparse.Namespace) -> None:
    adder = _loaded(options.model, options.device, _TRAIN_FIRST).adder
    pairs = adder.pairs
    if not options.all:
        score = adder.evaluate(*pairs.held_out(positive_int("pairs", options.pairs)))
        print(f"held out: {score}")
    else:
        if pairs.count > _MOST_PAIRS:
            raise ValueError(f"--all would ask {pairs.count:,} pairs; use --pairs")
        with Progress() as progress:
            trained, held_out = adder.evaluate_all(progress)
        score = trained + held_out
        print(f"trained on: {trained}\nheld out:   {held_out}\nall pairs:  {score}")
    if score.wrong:
        print(folded(f"wrong, with the right answer behind: {', '.join(score.wrong)}", 4))

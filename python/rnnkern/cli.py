# SPDX-License-Identifier: Apache-2.0
"""The command line: ``rnnkern adder|bench|explore|info``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnnkern import info, set_num_threads
from rnnkern._checks import positive_int
from rnnkern.adder import CELLS, HELD_OUT_SAMPLE, Adder, Settings, Training, train
from rnnkern.device import NAMES
from rnnkern.plot import plot_training, require_matplotlib
from rnnkern.progress import Progress

_MODEL = Path("adder.safetensors")
_MOST_PAIRS = 10**8  # that ``evaluate --all`` asks

# Commands whose module is loaded when they are the one: its configure(parser) adds the options.
_LAZY = {
    "bench": ("rnnkern.bench.command", "time rnnkern against its peers on this machine"),
    "explore": ("rnnkern.explore.command", "the classic experiments with recurrent networks"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[0] if arguments else None).parse_args(arguments)
    try:
        if getattr(options, "threads", None) is not None:
            set_num_threads(positive_int("threads", options.threads))
        options.run(options)
    except KeyboardInterrupt:
        print("rnnkern: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        print(f"rnnkern: error: {text}", file=sys.stderr)
        return 2
    return 0


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The whole command line; of the commands loaded lazily, ``command`` alone has its options."""
    parser = argparse.ArgumentParser(
        prog="rnnkern", description="Recurrent networks as compiled kernels."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tell = commands.add_parser("info", help="tell what this installation runs on, and why")
    tell.set_defaults(run=_info)

    for name, (module, summary) in _LAZY.items():
        lazy = commands.add_parser(name, help=summary)
        if name == command:
            importlib.import_module(module).configure(lazy)

    adder = commands.add_parser("adder", help="a model that learns to add")
    actions = adder.add_subparsers(required=True, metavar="ACTION")
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
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option per field of ``Settings``, absent unless given, so that a resume can compare."""
    helps = {
        "digits": "the most digits of a number, 1 to 6",
        "cell": f"one of {', '.join(CELLS)}",
        "hidden": "hidden size",
        "layers": "stacked layers of encoder and decoder",
        "bidirectional": "let the encoder read both ways",
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
                metavar=kind.__name__.upper(),
                help=helps[field.name] + default,
            )


def _info(_: argparse.Namespace) -> None:
    facts = {key: str(value) for key, value in info().items()}
    width = max(map(len, facts)) + 2
    for key, value in facts.items():
        print(f"{key + ':':{width}}{value}")


def _train(options: argparse.Namespace) -> None:
    if options.plot is not None:
        require_matplotlib()
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in vars(options).items() if name in names}
    begin = _resumed if options.resume else _fresh
    training = begin(options.model, given, options.device)
    try:
        score = train(
            training,
            options.model,
            save_every=options.save_every,
            report_every=options.report_every,
        )
    except KeyboardInterrupt:
        print(f"go on from the last checkpoint: --resume --model {options.model}", file=sys.stderr)
        raise
    print(
        f"{training.step:,} steps in {training.seconds:.1f} s; whole answers to held-out "
        f"questions: {score}"
    )
    if score.wrong:
        print(f"wrong, with the right answer behind: {', '.join(score.wrong)}")
    question = "535+61" if training.adder.settings.digits >= 3 else "3+4"
    where = "" if options.model == _MODEL else f" --model {options.model}"
    print(f'the model is in {options.model}; ask it: rnnkern adder ask{where} "{question}"')
    if options.plot is not None:
        settings = training.adder.settings
        title = f"{settings.cell}, hidden size {settings.hidden}, {settings.digits} digits"
        plot_training(options.plot, title, np.array(training.history))


def _fresh(path: Path, given: dict[str, Any], device: str) -> Training:
    """A new run; a model that is in its way is set aside, not lost."""
    training = Training(Adder(Settings(**given), device=device))
    target = path.resolve() if path.is_symlink() else path
    if target.is_file():
        aside = target.with_suffix(f".previous{target.suffix}")
        target.replace(aside)
        print(f"the earlier {target} is now {aside}")
    return training


def _resumed(path: Path, given: dict[str, Any], device: str) -> Training:
    """The run of a checkpoint, whose settings must not be given another value."""
    training = Training.load(path, device=device)
    for name, value in given.items():
        kept = getattr(training.adder.settings, name)
        if value != kept:
            raise ValueError(
                f"--{name} {value} was given, but the run in {path} has {name} {kept}: "
                "a resumed run keeps its settings"
            )
    return training


def _ask(options: argparse.Namespace) -> None:
    adder = Adder.load(options.model, device=options.device)
    for question in options.question:
        print(adder.ask(question))


def _evaluate(options: argparse.Namespace) -> None:
    adder = Adder.load(options.model, device=options.device)
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
        print(f"wrong, with the right answer behind: {', '.join(score.wrong)}")

# SPDX-License-Identifier: Apache-2.0
"""The command line: ``rnnkern adder|bench|explore|info``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from rnnkern import __version__, _core, info, set_num_threads
from rnnkern._checks import positive_int
from rnnkern.progress import folded

# Commands whose module is loaded when they are the one: its configure(parser) adds the options.
_LAZY = {
    "adder": ("rnnkern.adder.command", "a model that learns to add"),
    "bench": ("rnnkern.bench.command", "time rnnkern against its peers on this machine"),
    "explore": ("rnnkern.explore.command", "the classic experiments with recurrent networks"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 after an error of the user's, 130 after Ctrl-C.

    Threads are the command's: the process has its own number of them back.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[0] if arguments else None).parse_args(arguments)
    threads = _core.process_threads()
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
    finally:
        _core.set_process_threads(threads)
    return 0


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The whole command line; of the commands loaded lazily, ``command`` alone has its options."""
    parser = argparse.ArgumentParser(
        prog="rnnkern", description="Recurrent networks as compiled kernels."
    )
    parser.add_argument("--version", action="version", version=f"rnnkern {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tell = commands.add_parser("info", help="tell what this installation runs on, and why")
    tell.set_defaults(run=_info)

    for name, (module, summary) in _LAZY.items():
        lazy = commands.add_parser(name, help=summary)
        if name == command:
            importlib.import_module(module).configure(lazy)
    return parser


def _info(_: argparse.Namespace) -> None:
    facts = {key: str(value) for key, value in info().items()}
    width = max(map(len, facts)) + 2
    for key, value in facts.items():
        print(folded(f"{key + ':':{width}}{value}", width))

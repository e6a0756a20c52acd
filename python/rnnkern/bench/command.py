# SPDX-License-Identifier: Apache-2.0
"""``rnnkern bench``: measure this machine, print tables, write numbers and pictures."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rnnkern import record
from rnnkern._checks import positive_int
from rnnkern.bench import adder, cost, documents, layers, memory, native, report, stream
from rnnkern.bench.problems import grid
from rnnkern.bench.torch_peer import peer_threads, set_peer_threads
from rnnkern.cells import CELLS
from rnnkern.plot import require_matplotlib
from rnnkern.progress import Progress

_SUBJECTS = {
    "layers": "whole layers, inference and training, against the peers",
    "stream": "single steps from Python against the peers, one thread",
    "adder": "the adder's training step against PyTorch",
    "memory": "peak memory of a call against PyTorch",
    "cost": "our time of a small call, as the work doubles, and with two threads against one",
}
_SECONDS = {"quick": 0.01, "short": 0.15, "full": 0.4}  # of measuring, a problem and contender


def configure(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``rnnkern bench`` its options."""
    parser.description = (
        "Time rnnkern, alternating with PyTorch, ONNX Runtime and whichever peers are installed; "
        "answers are compared first."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        [
            "subjects:",
            *(f"  {name:8}{text}" for name, text in _SUBJECTS.items()),
            "",
            "rnnkern bench report [DOCUMENT ...] measures nothing: it makes the tables of",
            "documents (README.md and docs/*.md) anew from the records that they name.",
        ]
    )
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help="what to measure (layers); all is everything"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="the whole grid, some minutes")
    size.add_argument("--quick", action="store_true", help="a try-out of seconds; means little")
    parser.add_argument(
        "--cell",
        action="append",
        choices=tuple(CELLS),
        help="a cell to measure, may be repeated (those that a subject is about)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads of all contenders (1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write pictures there")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    if options.subjects[:1] == ["report"]:
        given = [Path(name) for name in options.subjects[1:]]
        documents.report(given or [Path("README.md"), *sorted(Path("docs").glob("*.md"))])
        return
    subjects = _subjects(options.subjects)
    positive_int("threads", options.threads)
    if options.plot is not None:
        require_matplotlib()
        options.plot.mkdir(
            parents=True, exist_ok=True
        )  # an error should come before the minutes of work
    for path in (options.json, options.markdown):
        if path is not None:
            path.touch()
    with peer_threads(options.threads), Progress() as progress:
        facts = record.facts()
        facts["versions"].update(native.versions())
        run = _Run(options, progress)
        print(
            f"{facts['processor']}, {facts['threads']} thread(s), {facts['isa']}, "
            + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        )
        for subject in subjects:
            getattr(run, subject)()
            run.write(facts)  # of each subject, so that one that fails takes no other with it
    for what, path in (("numbers", options.json), ("tables", options.markdown)):
        if path is not None:
            print(f"\nthe {what} are in {path}")


def _subjects(given: Sequence[str]) -> list[str]:
    """Those asked for, once each, in their own order."""
    unknown = sorted(set(given) - {*_SUBJECTS, "all"})
    if unknown:
        raise ValueError(
            f"SUBJECT must be one of {', '.join([*_SUBJECTS, 'all'])}, got {', '.join(unknown)}"
        )
    if "all" in given:
        return list(_SUBJECTS)
    return [subject for subject in _SUBJECTS if subject in (given or ["layers"])]


class _Run:
    """One run: its options, and what has been measured; a method for each subject."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self.options = options
        self.progress = progress
        self.size = "full" if options.full else "quick" if options.quick else "short"
        self.seconds = _SECONDS[self.size]
        self.machine = layers.Machine(self.seconds)
        self.results: dict[str, list[report.Line]] = {}
        self.tables: list[str] = []

    def layers(self) -> None:
        options = self.options
        reasons = {p: layers.refusal(p) for p in grid(options.cell, full=options.full)}
        problems = [problem for problem, reason in reasons.items() if reason is None]
        lines = [
            layers.measure(problem, self.machine, self.seconds)
            for problem in self._each("layers", problems, lambda p: f"{p.cell}, {p.work}")
        ]
        self.results["layers"] = lines
        peaks = ", ".join(f"{k} {p:.0f}" for k, p in self.machine.describe()["peak_gflops"].items())
        self._table(
            f"The product's peak: {peaks} GF/s. Medians; spread is between the quartiles, "
            "the floor is the time in which the recurrent weights are read once a step.",
            report.table(report.LAYER_HEADER, map(report.layer_row, lines)),
        )
        self._table(
            "Inference / training: how many times the fastest peer's speed; ≈ where the quartiles "
            "of both times overlap.",
            report.layer_tables(lines),
        )
        if means := report.geometric_means(lines):
            self._say(f"Geometric means over the fastest peer, whole batches in float32: {means}")
        disturbed = sum(line["disturbed"] for line in lines)
        if disturbed:
            self._say(f"{disturbed} problems were measured while others used the machine")
        absent = {name: why for line in lines for name, why in line["absent"].items()}
        for name in sorted(set(absent) - {n for line in lines for n in line["ratios"]}):
            self._say(f"{name}: skipped, {absent[name]}")
        for reason, count in Counter(filter(None, reasons.values())).items():
            self._say(f"{count} problems skipped: {reason}")
        self._draw("ratios", lambda: report.ratio_figure(lines))
        peak, bandwidth = self.machine.peak("float32"), self.machine.bandwidth
        self._draw("roofline", lambda: report.roofline_figure(lines, peak, bandwidth))

    def stream(self) -> None:
        sizes = stream.HIDDEN if self.options.full else stream.SHORT_HIDDEN
        pairs = [(cell, hidden) for cell in self.options.cell or CELLS for hidden in sizes]
        with peer_threads(1):
            lines = [
                stream.measure(cell, hidden, self.seconds)
                for cell, hidden in self._each("stream", pairs, lambda p: f"{p[0]}, H {p[1]}")
            ]
        self.results["stream"] = lines
        self._table(
            "A stream of one row, I = H, one thread, called from Python.",
            stream.stream_table(lines),
        )

    def adder(self) -> None:
        counts = sorted({1, min(2, os.cpu_count() or 1)})
        cases = [(*case, count) for case in adder.cases(self.options.cell) for count in counts]
        lines = [
            adder.measure(cell, threads, 2 * self.seconds, compute)
            for cell, compute, threads in self._each(
                "adder", cases, lambda c: f"{c[0]}, {c[1] or 'float32'}, {c[2]} thread(s)"
            )
        ]
        self.results["adder"] = lines
        self._table(
            "A training step of the adder (hidden 128, batch 256).", adder.adder_table(lines)
        )
        set_peer_threads(self.options.threads)

    def memory(self) -> None:
        cells = self.options.cell or memory.CELLS
        problems = list(memory.problems(cells))[: 1 if self.options.quick else None]
        lines = [
            memory.measure(problem)
            for problem in self._each("memory", problems, lambda p: f"{p.cell}, {p.work}")
        ]
        self.results["memory"] = lines
        self._table(
            "Peak resident memory of a call, above what the caller holds before it.",
            memory.memory_table(lines),
        )

    def cost(self) -> None:
        lines, scaled = [], []
        cells = self.options.cell or cost.CELLS
        for cell in self._each("cost", cells, str):
            lines += cost.measure_cost(cell, self.seconds)
        self.results["cost"] = lines
        self._table(
            "A training step as the work doubles, one size in turn.", cost.cost_table(lines)
        )
        self._draw("cost", lambda: report.cost_figure(lines))
        called = [
            cost.measure_calls(cell, self.seconds) for cell in self._each("calls", cells, str)
        ]
        self.results["calls"] = called
        self._table("Calls of one step of one row, H = 16.", cost.calls_table(called))
        if (os.cpu_count() or 1) > 1:
            for cell in self._each("threads", cells, str):
                scaled += cost.measure_threads(cell, 2, self.seconds)
            self.results["threads"] = scaled
            self._table("A training step with more threads.", cost.threads_table(scaled))
            set_peer_threads(self.options.threads)

    def write(self, facts: dict[str, Any]) -> None:
        """All that has been measured so far, to the files asked for."""
        if self.options.json is not None:
            parts = {"facts": facts, **self.machine.describe(), **self.results}
            record.write(self.options.json, parts)
        if self.options.markdown is not None:
            self.options.markdown.write_text("\n\n".join(self.tables) + "\n", encoding="utf-8")

    def _each(self, what: str, items: Sequence[Any], name: Callable[[Any], str]) -> Iterator[Any]:
        """The items, with the bar moved for each."""
        for done, item in enumerate(items):
            self.progress.show(
                done / len(items), f"{done + 1} of {len(items)}, {what}: {name(item)}"
            )
            yield item

    def _table(self, title: str, text: str) -> None:
        self.tables += [title, text]
        self.progress.line(f"\n{title}\n\n{text}")

    def _say(self, text: str) -> None:
        self.tables.append(text)
        self.progress.line(text)

    def _draw(self, name: str, figure: Callable[[], Any]) -> None:
        if self.options.plot is not None:
            path = self.options.plot / f"{name}.png"
            figure().savefig(path, format="png")
            self.progress.line(f"the picture is in {path}")

# SPDX-License-Identifier: Apache-2.0
"""How calls fare beside others: busy cores, other processes and threads, too many threads asked.

    python bench/neighbours.py [--builds NAME=INTERPRETER ...] [--record FILE.json]

Each way of running is a process of its own that waits for its turn; all ways, works and builds (of
rnnkern, by the interpreter that has it installed; "this" alone if none is named) come up in every
round, so that what else goes on in the machine meets them alike. Prints tables in Markdown: ratios
and their bounds; the record holds the times themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

# Cell, H (= I), B, T, with the backward pass.
WORKS = {
    "LSTM, H 1024, B 1, T 25": (1024, 1, 25, False),
    "LSTM, H 256, B 1, T 100": (256, 1, 100, False),
    "LSTM, H 128, B 16, T 50": (128, 16, 50, False),
    "LSTM training, H 256, B 32, T 50": (256, 32, 50, True),
}
# Of each process: the variables it begins with, callers, threads set for them (0: none), cores.
WAYS: dict[str, dict[str, Any]] = {
    "one": {"set": 1},
    "two": {"set": 2},
    "other two": {"set": 2},
    "two callers": {"set": 1, "callers": 2},
    "eight callers": {"callers": 8},
    "pinned": {"cores": 1},
    "eight": {"asked": "8"},
    "thirty-two": {"asked": "32"},
}
# What runs at once, and what is measured of it.
SCENES: dict[str, tuple[str, ...]] = {
    "one": ("one",),
    "two": ("two",),
    "two callers": ("two callers",),
    "eight callers": ("eight callers",),
    "busy neighbour": ("two", "busy"),
    "two processes": ("two", "other two"),
    "pinned to one core": ("pinned",),
    "8 threads asked for": ("eight",),
    "32 threads asked for": ("thirty-two",),
}


# -- a process that waits for its turns -----------------------------------------------------------


def serve(way: dict[str, Any]) -> None:
    """Read a work's name and seconds a line; answer with the times of its calls."""
    if way.get("cores"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: way["cores"]])
    import numpy as np

    import rnnkern as rk

    callers = way.get("callers", 1)
    if way.get("set"):
        rk.set_num_threads(way["set"])
    calls = {}
    for name, (size, batch, steps, training) in WORKS.items():
        layer = rk.LSTM(size, size, seed=0)
        x = np.ones((steps, batch, size), np.float32)
        dy = np.ones((steps, batch, size), np.float32)

        def call(layer: Any = layer, x: Any = x, dy: Any = dy, training: bool = training) -> None:
            if training:
                layer.forward(x)[2].backward(dy)
            else:
                layer(x)

        call()
        calls[name] = call

    def work(name: str, end: float, times: list[float]) -> None:
        if way.get("set"):  # older builds' limit was a thread's
            rk.set_num_threads(way["set"])
        while (began := time.perf_counter()) < end:
            calls[name]()
            times.append(time.perf_counter() - began)

    print(json.dumps(rk.info()), flush=True)
    for line in sys.stdin:
        name, seconds = json.loads(line)
        times: list[list[float]] = [[] for _ in range(callers)]
        end = time.perf_counter() + seconds
        threads = [Thread(target=work, args=(name, end, t)) for t in times[1:]]
        for thread in threads:
            thread.start()
        began = time.perf_counter()
        work(name, end, times[0])
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        print(json.dumps({"times": [t for ts in times for t in ts], "seconds": took}), flush=True)


class Server:
    """Such a process, of one build."""

    def __init__(self, interpreter: str, way: dict[str, Any]) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
        environment["OPENBLAS_NUM_THREADS"] = "1"
        if "asked" in way:
            environment["OMP_NUM_THREADS"] = way["asked"]
        self._process = subprocess.Popen(
            [interpreter, __file__, "--serve", json.dumps(way)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.info = self.answer()

    def ask(self, work: str, seconds: float) -> None:
        assert self._process.stdin is not None
        print(json.dumps([work, seconds]), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Busy:
    """A process that takes all of a core that it can get, when let."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        self.stop()

    def go(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


# -- the rounds -----------------------------------------------------------------------------------

Measured = dict[str, list[float]]


def measure(
    builds: dict[str, str], works: list[str], rounds: int, seconds: float
) -> dict[str, Any]:
    """By build, work and scene: the times of calls, and calls a second of each round."""
    times: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    rates: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with ExitStack() as stack:
        busy = Busy()
        stack.callback(busy.close)
        servers = {}
        for build, interpreter in builds.items():
            for name, way in WAYS.items():
                servers[build, name] = Server(interpreter, way)
                stack.callback(servers[build, name].close)
        for _ in range(rounds):
            for work in works:
                for scene, ways in SCENES.items():
                    for build in builds:
                        here = [servers[build, way] for way in ways if way != "busy"]
                        if "busy" in ways:
                            busy.go()
                        for server in here:
                            server.ask(work, seconds * (3 if "busy" in ways else 1))
                        answers = [server.answer() for server in here]
                        busy.stop()
                        for answer in answers:
                            times[build][work][scene] += answer["times"]
                            rates[build][work][scene].append(
                                len(answer["times"]) / answer["seconds"]
                            )
        infos = {build: servers[build, "one"].info for build in builds}
    return {"info": infos, "times": times, "rates": rates}


def ratios(times: Measured, rates: Measured) -> dict[str, float]:
    """What the bounds are for."""
    median = {scene: statistics.median(t) for scene, t in times.items()}
    late = statistics.quantiles(times["busy neighbour"], n=20)[-1]
    rate = {scene: statistics.median(r) for scene, r in rates.items()}
    return {
        "busy neighbour: median / one thread": median["busy neighbour"] / median["one"],
        "busy neighbour: 95% / one thread": late / median["one"],
        "two processes / 2 x two threads": median["two processes"] / (2 * median["two"]),
        "8 callers / 2 of one thread (rate)": rate["eight callers"] / rate["two callers"],
        "pinned / one thread": median["pinned to one core"] / median["one"],
        "8 asked / two threads": median["8 threads asked for"] / median["two"],
        "32 asked / two threads": median["32 threads asked for"] / median["two"],
    }


BOUNDS = {
    "busy neighbour: median / one thread": "<= 1.2",
    "busy neighbour: 95% / one thread": "<= 2",
    "two processes / 2 x two threads": "<= 1.3",
    "8 callers / 2 of one thread (rate)": ">= 0.9",
    "pinned / one thread": "<= 1.2",
    "8 asked / two threads": "<= 1.1",
    "32 asked / two threads": "<= 1.1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="How calls fare beside others.")
    parser.add_argument("--builds", nargs="+", default=[], metavar="NAME=INTERPRETER")
    parser.add_argument("--works", nargs="+", type=int, default=range(len(WORKS)), metavar="N")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.3,
        help="of a scene in a round; a busy neighbour gets three times as long",
    )
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    # Not above: an older build, in a process that this one starts, may not have them.
    from rnnkern import record
    from rnnkern.bench.report import table

    builds = dict(b.split("=", 1) for b in options.builds) or {"this": sys.executable}
    works = [list(WORKS)[k] for k in options.works]
    measured = measure(builds, works, options.rounds, options.seconds)
    found = {
        work: {
            build: ratios(measured["times"][build][work], measured["rates"][build][work])
            for build in builds
        }
        for work in works
    }
    rows = []
    for work in works:
        for what in ("one", "two"):
            medians = (statistics.median(measured["times"][b][work][what]) for b in builds)
            label = f"{what} thread{'s' if what == 'two' else ''}"
            rows.append([work, label, *(f"{m * 1e3:.3f} ms" for m in medians), ""])
        for name, bound in BOUNDS.items():
            rows.append([work, name, *(f"{found[work][b][name]:.2f}" for b in builds), bound])
    header = ["call", "", *builds, "bound"]
    print(table(header, rows))
    if options.record:
        parts = {
            "kernel": platform.release(),
            "rounds": options.rounds,
            "seconds": options.seconds,
            "builds": measured["info"],
            "ratios": found,
            "table": {"header": header, "rows": rows},
            "rates": measured["rates"],
            "milliseconds": {
                build: {
                    work: {scene: [round(t * 1e3, 4) for t in ts] for scene, ts in by.items()}
                    for work, by in by_work.items()
                }
                for build, by_work in measured["times"].items()
            },
        }
        record.write(options.record, parts, indent=None)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Many small sequences at once: 64 clients, each of whom asks for one row of 20 steps.

``python bench/serving.py --json FILE``: throughput and latency of an LSTM and a GRU, one call a
request and a worker thread for each core, with the threads that each library takes by default. A
client asks again when it has its answer. Each contender is a process of its own that waits for its
turn; turns alternate, so that noise of the machine meets all alike, and outputs are compared
before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from rnnkern import record
from rnnkern.bench.case import Case, make_case, relative_error
from rnnkern.bench.onnx_peer import onnxruntime_session
from rnnkern.bench.problems import Problem
from rnnkern.bench.torch_peer import torch_module

_CLIENTS, _STEPS = 64, 20
_WORKS = {
    "LSTM, H 64": ("lstm", 64),
    "LSTM, H 256": ("lstm", 256),
    "GRU (after), H 64": ("gru-after", 64),
    "GRU (after), H 256": ("gru-after", 256),
}
_CONTENDERS = ("rnnkern", "onnxruntime", "torch")
_ROUNDS, _SECONDS = 7, 0.5
_WARM_UP = 0.2


# -- a contender's process ------------------------------------------------------------------------


def _call(name: str, case: Case) -> Callable[[np.ndarray], np.ndarray]:
    if name == "rnnkern":
        frozen = case.layer.freeze()
        return lambda x: frozen(x)[0]
    if name == "onnxruntime":
        session = onnxruntime_session(case, 0)  # 0: as many as it takes by default
        return lambda x: session.run(None, {"x": x})[0][:, 0]
    import torch

    module = torch_module(case)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            y: np.ndarray = module(torch.from_numpy(x))[0].numpy()
        return y

    return run


def _serve(name: str) -> None:
    """Answer a line "work, seconds" with how long each request took; first come the outputs."""
    calls, x = {}, {}
    for work, (cell, hidden) in _WORKS.items():
        case = make_case(Problem(cell, 1, _STEPS, hidden, training=False))
        calls[work], x[work] = _call(name, case), case.x
    print(json.dumps({work: calls[work](x[work]).tolist() for work in _WORKS}), flush=True)
    for line in sys.stdin:
        work, seconds = json.loads(line)
        waiting: SimpleQueue[float] = SimpleQueue()  # when each client asked
        taken: list[list[float]] = [[] for _ in range(os.cpu_count() or 1)]
        began = time.perf_counter()
        for _ in range(_CLIENTS):
            waiting.put(began)

        def worker(
            own: list[float],
            work: str = work,
            until: float = began + seconds,
            waiting: SimpleQueue[float] = waiting,
        ) -> None:
            call, mine = calls[work], x[work].copy()
            while time.perf_counter() < until:
                asked = waiting.get()
                call(mine)
                now = time.perf_counter()
                own.append(now - asked)
                waiting.put(now)

        workers = [Thread(target=worker, args=(own,)) for own in taken]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
        seconds_taken = time.perf_counter() - began
        requests = sorted(t for own in taken for t in own)
        result = {
            "per_second": len(requests) / seconds_taken,
            "p50_ms": 1e3 * requests[len(requests) // 2],
            "p99_ms": 1e3 * requests[len(requests) * 99 // 100],
        }
        print(json.dumps(result), flush=True)


class _Process:
    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")},
        )
        self.outputs = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a contender's process ended")
        return json.loads(line)

    def turn(self, work: str, seconds: float) -> dict[str, float]:
        assert self._process.stdin is not None
        print(json.dumps([work, seconds]), file=self._process.stdin, flush=True)
        answer: dict[str, float] = self._read()
        return answer

    def close(self) -> None:
        self._process.communicate()


# -- the measurement ------------------------------------------------------------------------------


def measure() -> list[dict[str, Any]]:
    """Every work and contender: all rounds."""
    processes = {name: _Process(name) for name in _CONTENDERS}
    lines = []
    for work in _WORKS:
        want = np.array(processes["rnnkern"].outputs[work])
        for name, process in processes.items():
            error = relative_error(np.array(process.outputs[work]), want)
            if not error < 1e-4:
                raise ArithmeticError(f"{work}: {name} is {error:.1e} from rnnkern")
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
        for process in processes.values():
            process.turn(work, _WARM_UP)
        for _ in range(_ROUNDS):
            for name, process in processes.items():
                rounds[name].append(process.turn(work, _SECONDS))
        lines.append({"work": work, "rounds": rounds})
    for process in processes.values():
        process.close()
    return lines


def table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the rounds: requests a second, and the 99th percentile of a request."""
    header = ["work", "requests/s", *(f"over {name}'s" for name in _CONTENDERS[1:])]
    header += ["99% take at most", *(f"{name}: 99%" for name in _CONTENDERS[1:])]
    rows = []
    for line in lines:

        def middle(name: str, what: str, line: dict[str, Any] = line) -> float:
            return float(statistics.median(turn[what] for turn in line["rounds"][name]))

        speeds = [middle(name, "per_second") for name in _CONTENDERS]
        rows.append(
            [
                line["work"],
                f"{speeds[0]:.0f}",
                *(f"{speeds[0] / other:.2f}" for other in speeds[1:]),
                *(f"{middle(name, 'p99_ms'):.1f} ms" for name in _CONTENDERS),
            ]
        )
    return {"header": header, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", choices=_CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args()
    if options.serve:
        _serve(options.serve)
        return
    lines = measure()
    made = table(lines)
    print(" | ".join(made["header"]))
    for row in made["rows"]:
        print(" | ".join(row))
    if options.json:
        record.write(options.json, {"serving": lines, "table": made})


if __name__ == "__main__":
    main()

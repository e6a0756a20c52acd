"""Times rnnkern against its peers: python bench/run.py [--threads N] [--quick] [--json FILE].

For each problem all contenders first give their answers, which must agree, and are then run in
turn, again and again, so that noise of the machine meets them alike. Medians and quartiles are
kept. Speeds are useful flops over time; the machine's product peak is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from peers import Contender, make_case, onnxruntime_contender, rnnkern_contender, torch_contender
from problems import CELLS, Problem, grid

import rnnkern as rk
from rnnkern import _core

_SECONDS = 0.6  # of measuring, a problem and contender
_REST = 0.1  # seconds, in which the last contender's idle threads stop spinning
_RUNS = 3  # in one turn
_TOLERANCE = 1e-4  # norm-wise, between two float32 answers


def alternate(contenders: list[Contender]) -> dict[str, list[float]]:
    """Seconds of each contender's runs, some in a row and in turns; a turn's first is not timed."""
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    began = time.perf_counter()
    while True:
        for contender in contenders:
            time.sleep(_REST)
            contender.run()
            for _ in range(_RUNS):
                start = time.perf_counter()
                contender.run()
                times[contender.name].append(time.perf_counter() - start)
        runs = len(times[contenders[0].name])
        if runs >= 5 and time.perf_counter() - began > _SECONDS * len(contenders):
            return times


def check(contenders: list[Contender]) -> None:
    """All answers agree with the first one's."""
    wanted = contenders[0].answer()
    for contender in contenders[1:]:
        for want, got in zip(wanted, contender.answer(), strict=True):
            error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
            if not error < _TOLERANCE:
                raise SystemExit(
                    f"{contender.name} disagrees with rnnkern: relative error {error:.2g}"
                )


def product_peak() -> float:
    """Flops a second of the best product of 1024 x 1024 matrices here, ours or a peer's."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((1024, 1024), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    contenders = [Contender("rnnkern", lambda: _core.matmul(a, b, out), list)]
    try:
        import torch
    except ImportError:
        pass
    else:
        ta, tb, tout = (torch.from_numpy(array) for array in (a, b, np.empty_like(a)))
        contenders.append(Contender("torch", lambda: torch.mm(ta, tb, out=tout), list))
    times = alternate(contenders)
    speeds = {name: 2.0 * 1024**3 / statistics.median(t) for name, t in times.items()}
    print(
        "product of 1024 x 1024:", ", ".join(f"{n} {s / 1e9:.0f} GF/s" for n, s in speeds.items())
    )
    return max(speeds.values())


def measure(problem: Problem, threads: int, peak: float) -> dict[str, Any]:
    """One line of the report."""
    case = make_case(problem)
    contenders, absent = [rnnkern_contender(case)], {}
    for name, found in (
        ("torch", torch_contender(case)),
        ("onnxruntime", onnxruntime_contender(case, threads)),
    ):
        if isinstance(found, str):
            absent[name] = found
        else:
            contenders.append(found)
    check(contenders)
    results: dict[str, dict[str, Any]] = {}
    for name, times in alternate(contenders).items():
        low, middle, high = statistics.quantiles(times, n=4)
        results[name] = {
            "milliseconds": middle * 1e3,
            "quartiles": [low * 1e3, high * 1e3],
            "gflops": problem.flops / middle / 1e9,
            "of_peak": problem.flops / middle / peak,
            "runs": len(times),
        }
    ours = results["rnnkern"]["milliseconds"]
    ratios = {n: r["milliseconds"] / ours for n, r in results.items() if n != "rnnkern"}
    return {**problem.describe(), "results": results, "ratios": ratios, "absent": absent}


def show(line: dict[str, Any]) -> None:
    """A line of the table."""
    kind = ("ragged " if line["ragged"] else "") + ("train" if line["training"] else "infer")
    ours = line["results"]["rnnkern"]
    ratios = "  ".join(f"{name} x{ratio:.2f}" for name, ratio in line["ratios"].items())
    print(
        f"{line['cell']:15} B {line['batch']:3} T {line['steps']:4} H {line['hidden']:5} {kind:13}"
        f" {ours['milliseconds']:9.3f} ms {ours['gflops']:7.1f} GF/s {ours['of_peak']:5.0%}"
        f"  {ratios}",
        flush=True,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    parser.add_argument("--quick", action="store_true", help="leave the large sizes out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args()
    rk.set_num_threads(options.threads)
    versions = {"rnnkern": rk.info()["version"], "numpy": np.__version__}
    for name in ("torch", "onnxruntime"):
        try:
            module = __import__(name)
        except ImportError:
            continue
        versions[name] = module.__version__
        if name == "torch":
            module.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} thread(s), {rk.info()['instruction set']}, {versions}")
    peak = product_peak()
    lines = []
    for problem in grid(tuple(options.cells), quick=options.quick):
        lines.append(measure(problem, options.threads, peak))
        show(lines[-1])
    best = [min(line["ratios"].values()) for line in lines if line["ratios"] and not line["ragged"]]
    if best:
        mean = statistics.geometric_mean(best)
        print(f"geometric mean over the fastest peer, whole batches: {mean:.2f}")
    if options.json:
        report = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "processor": processor(),
            "isa": _core.isa(),
            "threads": options.threads,
            "versions": versions,
            "peak_gflops": peak / 1e9,
            "lines": lines,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


if __name__ == "__main__":
    main()

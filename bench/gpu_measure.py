# SPDX-License-Identifier: Apache-2.0
"""Times works on a GPU: python bench/gpu_measure.py FILE [PART...]; bench/gpu runs it.

All contenders of a work first give their answers, which must agree, and are then run in turn in one
process. Times are CUDA events' on one stream, medians; a first call is timed apart, by the clock.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_work
import numpy as np
from gpu_work import HALVES, Record, Work, cudnn
from numpy.typing import NDArray

import rnnkern as rk
from rnnkern.bench.torch_peer import KINDS, negated
from rnnkern.cells import CELLS
from rnnkern.devices import get_device

Array = NDArray[Any]

_SECONDS = 0.4  # of measuring, a work
_LONGEST = 40.0  # seconds for a work, first calls included; then the process ends
_FAILURES = (RuntimeError, ValueError, MemoryError)  # of a contender, kept in the record
_ROUNDS = 3  # at least, in which each contender has its turn
_RUNS = 3  # in one turn, after one that is not timed
# Norm-wise, between two answers of which one is rounded so.
_TOLERANCE = {"float32": 1e-4, "tfloat32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Case:
    """A work's numbers in host memory."""

    work: Work
    params: dict[str, Array]
    x: Array
    dy: Array
    lengths: Array | None


@dataclass(frozen=True)
class Contender:
    """``run`` does the work once; its ``answer`` is y, and dx when training, or None: no equal."""

    name: str
    compute: str
    run: Callable[[], Any]
    answer: Callable[[], list[Array]] | None


def make_layer(work: Work, device: str) -> Any:
    """Ours."""
    compute = None if device == "cpu" or work.compute == "float32" else work.compute
    return CELLS[work.cell].build(
        work.inputs,
        work.hidden,
        work.layers,
        bidirectional=work.directions == 2,
        compute=compute,
        device=device,
        seed=0,
    )


def make_case(work: Work) -> Case:
    """The same numbers for the same work."""
    random = np.random.default_rng(0)
    shape = (work.steps, work.batch)
    return Case(
        work,
        make_layer(work, "cpu").params,
        random.standard_normal((*shape, work.inputs), np.float32),
        random.standard_normal((*shape, work.hidden * work.directions), np.float32),
        random.integers(1, work.steps + 1, work.batch) if work.ragged else None,
    )


def rnnkern_contender(case: Case, *, padded: bool = False) -> Contender:
    """This package; `padded` runs all rows at full length."""
    device, layer = get_device("cuda"), make_layer(case.work, "cuda")
    for name, p in case.params.items():
        layer.params[name][...] = device.put(p)
    x, dy = device.put(case.x), device.put(case.dy)
    lengths = None if padded else case.lengths

    def infer() -> list[Any]:
        return [layer(x, None, lengths)[0]]

    def train() -> list[Any]:
        y, _, tape = layer.forward(x, None, lengths)
        return [y, tape.backward(dy)[0]]

    run = train if case.work.training else infer
    return Contender(
        "rnnkern padded" if padded else "rnnkern",
        case.work.compute,
        run,
        None if padded else lambda: [device.get(array) for array in run()],
    )


def torch_contender(case: Case, compute: str, place: str = "cuda") -> Contender | str:
    """PyTorch's layers, on a GPU cuDNN's, in that precision; or why there are none."""
    work = case.work
    if _twin(work.cell) not in KINDS:
        return "no such cell"
    try:
        import torch
    except ImportError as error:
        return str(error)
    if place == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    kind = getattr(torch.nn, KINDS[_twin(work.cell)].layer)
    dtype = getattr(torch, compute) if compute in HALVES else torch.float32
    module: Any = kind(work.inputs, work.hidden, work.layers, bidirectional=work.directions == 2)
    with torch.no_grad():
        for name, array in torch_parameters(work, case.params).items():
            getattr(module, name).copy_(torch.from_numpy(array))
    module.to(place, dtype).flatten_parameters()
    x = torch.from_numpy(case.x).to(place, dtype).requires_grad_(work.training)
    dy = torch.from_numpy(case.dy).to(place, dtype)
    lengths = None if case.lengths is None else torch.from_numpy(case.lengths)
    rnn = torch.nn.utils.rnn

    def forward() -> Any:
        torch.backends.cudnn.allow_tf32 = compute == "tfloat32"
        torch.backends.cuda.matmul.allow_tf32 = compute == "tfloat32"
        if lengths is None:
            return module(x)[0]
        packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return rnn.pad_packed_sequence(module(packed)[0], total_length=work.steps)[0]

    def infer() -> list[Any]:
        with torch.no_grad():
            return [forward()]

    def train() -> list[Any]:
        module.zero_grad(set_to_none=True)
        x.grad = None
        y = forward()
        y.backward(dy)
        return [y, x.grad]

    run = train if work.training else infer

    def answer() -> list[Array]:
        return [array.detach().float().cpu().numpy() for array in run()]

    same = _twin(work.cell) == work.cell
    return Contender(cudnn(compute), compute, run, answer if same else None)


def _twin(cell: str) -> str:
    """The cell that PyTorch's is: nobody has the reset before, so the other GRU is timed beside."""
    return "gru-after" if cell == "gru" else cell


def torch_parameters(work: Work, params: dict[str, Array]) -> dict[str, Array]:
    """Our parameters under PyTorch's names, whose z is 1 - u: a GRU's update rows change sign."""
    theirs: dict[str, Array] = {}
    for name, p in params.items():
        array = p if name.startswith("bias_hn") else negated(_twin(work.cell), p)
        if name.startswith("bias_l"):
            theirs[name.replace("bias", "bias_ih")] = array
            theirs.setdefault(name.replace("bias", "bias_hh"), np.zeros_like(array))
        elif name.startswith("bias_hn"):
            theirs[name.replace("bias_hn", "bias_hh")][-work.hidden :] = array
        else:
            theirs[name] = array
    return theirs


def flashrnn_contender(case: Case) -> Contender | str:
    """FlashRNN's fused LSTM, which is given W·x ready made; or why there is none."""
    work = case.work
    alone = (work.layers, work.directions, work.ragged) == (1, 1, False)
    if work.cell != "lstm" or not alone or work.compute not in HALVES:
        return "only an LSTM of one layer in half precision is fused"
    if work.inputs != gpu_work.FEW_INPUTS:
        return "does not do the input's product"
    try:
        import torch
        from flashrnn import flashrnn  # type: ignore[import-not-found]
    except Exception as error:
        return f"cannot be imported: {error}"
    dtype, p = getattr(torch, work.compute), case.params
    product = case.x @ p["weight_ih_l0"].T
    shape = (work.batch, work.steps, 4, 1, work.hidden)
    wx = torch.from_numpy(np.ascontiguousarray(product.swapaxes(0, 1)).reshape(shape))
    wx = wx.to("cuda", dtype).requires_grad_(work.training)
    r = torch.from_numpy(p["weight_hh_l0"].reshape(4, 1, work.hidden, work.hidden))
    r = r.to("cuda", dtype).requires_grad_(work.training)
    b = torch.from_numpy(p["bias_l0"].reshape(4, 1, work.hidden))
    b = b.to("cuda", dtype).requires_grad_(work.training)
    dy = torch.from_numpy(case.dy).to("cuda", dtype)

    def forward() -> Any:
        states, _ = flashrnn(wx, r, b, function="lstm", backend="cuda_fused", dtype=work.compute)
        return states[0, :, :, 0].transpose(0, 1)

    def run() -> list[Any]:
        if not work.training:
            with torch.no_grad():
                return [forward()]
        wx.grad = r.grad = b.grad = None
        y = forward()
        y.backward(dy)
        return [y]

    def answer() -> list[Array]:
        return [array.detach().float().cpu().numpy() for array in run()]

    return Contender("FlashRNN", work.compute, run, answer)


def contenders(case: Case) -> tuple[list[Contender], dict[str, str]]:
    """Ours first, then who can do the same; and why the others cannot."""
    work = case.work
    found, absent = [rnnkern_contender(case)], {}
    if work.ragged:
        found.append(rnnkern_contender(case, padded=True))
    peers: dict[str, Contender | str] = {
        cudnn(compute): torch_contender(case, compute)
        for compute in dict.fromkeys(
            (work.compute, *(["float16"] if work.compute in HALVES else []))
        )
    }
    if work.part == "flashrnn":
        peers["FlashRNN"] = flashrnn_contender(case)
    for name, peer in peers.items():
        if isinstance(peer, str):
            absent[name] = peer
        else:
            found.append(peer)
    return found, absent


class Events:
    """Milliseconds between CUDA events on the current stream."""

    def __init__(self) -> None:
        self._cuda = get_device("cuda").xp.cuda

    def synchronize(self) -> None:
        self._cuda.get_current_stream().synchronize()

    def milliseconds(self, run: Callable[[], Any]) -> float:
        begin, end = self._cuda.Event(), self._cuda.Event()
        begin.record()
        run()
        end.record()
        end.synchronize()
        elapsed: float = self._cuda.get_elapsed_time(begin, end)
        return elapsed


def measure(case: Case, all_of_them: list[Contender], absent: dict[str, str], clock: Any) -> Record:
    """A work's record: who agrees, first calls, medians and quartiles."""
    firsts, agreed, wanted = {}, [], None
    for contender in all_of_them:
        begin = time.perf_counter()
        try:
            contender.run()
            clock.synchronize()
        except _FAILURES as error:
            if contender is all_of_them[0]:
                raise
            absent[contender.name] = f"failed: {error}"
            continue
        firsts[contender.name] = (time.perf_counter() - begin) * 1e3
        if contender.answer is not None:
            answers = contender.answer()
            wanted = answers if wanted is None else wanted
            limit = max(_TOLERANCE[contender.compute], _TOLERANCE[case.work.compute])
            off = max(map(relative_error, answers, wanted))
            if not off <= limit:
                absent[contender.name] = f"disagrees with rnnkern: relative error {off:.2g}"
                continue
        agreed.append(contender)
    times: dict[str, list[float]] = {c.name: [] for c in agreed}
    began, rounds = time.perf_counter(), 0
    while rounds < _ROUNDS or time.perf_counter() - began < _SECONDS:
        rounds += 1
        for contender in agreed:
            contender.run()
            times[contender.name] += [clock.milliseconds(contender.run) for _ in range(_RUNS)]
    record = {
        **gpu_work.describe(case.work),
        "milliseconds": {name: statistics.median(t) for name, t in times.items()},
        "quartiles": {name: statistics.quantiles(t, n=4)[::2] for name, t in times.items()},
        "runs": rounds * _RUNS,
        "first_milliseconds": firsts,
        "absent": absent,
    }
    if case.lengths is not None:
        record["live"] = float(case.lengths.mean()) / case.work.steps
    return record


def relative_error(got: Array, want: Array) -> float:
    """Norm-wise."""
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(got.astype(np.float64) - want)) / (size or 1.0)


def machine() -> dict[str, str]:
    """What the times were taken on."""
    facts = {"device": rk.info()["cuda"], "date": time.strftime("%Y-%m-%d", time.gmtime())}
    facts["versions"] = f"rnnkern {rk.info()['version']}, NumPy {np.__version__}"
    for name in ("cupy", "torch", "flashrnn"):
        try:
            module = __import__(name)
        except Exception as error:
            facts[name] = f"absent: {error}"
            continue
        facts[name] = getattr(module, "__version__", "of unknown version")
        if name == "torch":
            facts["cuDNN"] = str(module.backends.cudnn.version())
    return facts


def free_memory() -> None:
    """Give back what the last work took, so that no library starves the other."""
    gc.collect()
    get_device("cuda").xp.get_default_memory_pool().free_all_blocks()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_parts(path: Path, names: list[str]) -> None:
    """Some parts, each for its share of the seconds, whatever is on record left out."""
    clock = Events()
    wanted = sum(gpu_work.PARTS[name].seconds for name in names)
    scale = gpu_work.seconds_allowed(wanted) / wanted
    for name in names:
        end = time.perf_counter() + gpu_work.PARTS[name].seconds * scale
        works = gpu_work.todo(name, gpu_work.read(path))
        gpu_work.append(path, {"listed": name, "works": len(works)})
        for index, work in enumerate(works):
            if time.perf_counter() >= end:
                break
            if sys.stderr.isatty():
                sys.stderr.write(f"\r\x1b[K{name} {index + 1} of {len(works)}: {work.key}")
                sys.stderr.flush()
            about = gpu_work.describe(work)
            with gpu_work.begun(path, about, _LONGEST):
                try:
                    case = make_case(work)
                    record = measure(case, *contenders(case), clock)
                except _FAILURES as error:
                    record = {**about, "error": str(error)}
                gpu_work.append(path, record)
                # A broken context fails every later call: bench/gpu then goes on in a new process.
                clock.synchronize()
                free_memory()
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


def main() -> None:
    """Measure, on one stream that all libraries share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(gpu_work.PARTS)}")
    options = parser.parse_args()
    names = options.parts or list(gpu_work.PARTS)
    cupy = get_device("cuda").xp
    gpu_work.append(options.file, {"machine": machine()})
    try:
        import torch

        stream = torch.cuda.Stream()
    except (ImportError, RuntimeError):
        with cupy.cuda.Stream(non_blocking=True):
            run_parts(options.file, names)
    else:
        with torch.cuda.stream(stream), cupy.cuda.ExternalStream(stream.cuda_stream):
            run_parts(options.file, names)


if __name__ == "__main__":
    main()

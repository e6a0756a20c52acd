# SPDX-License-Identifier: Apache-2.0
"""That the bench is fair: answers are compared, peers work once, with all their threads."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.adder import Adder, Settings
from rnnkern.bench import adder, command, cost, layers, memory, native, peers, stream
from rnnkern.bench.case import Contender, DisagreementError, make_case
from rnnkern.bench.peers import contenders
from rnnkern.bench.problems import Problem
from rnnkern.bench.timing import Spread
from rnnkern.bench.torch_peer import set_peer_threads
from rnnkern.cells import CELLS
from rnnkern.cli import main

from support.processes import run_python
from support.threads import using_threads

SMALL = Problem("lstm", 3, 5, 8, training=False)


def alternated(calls: dict[str, Callable[[], object]], _: float) -> dict[str, Spread]:
    """In the place of ``alternate``: ours takes 2 s and others 6 s, with wide quartiles."""
    times = {"rnnkern": Spread(0.5, 2.0, 9.0)}
    return {name: times.get(name, Spread(1.0, 6.0, 9.0)) for name in calls}


# -- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_that_is_one_percent_off_is_refused(
    monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    def with_a_liar(case: Any, threads: int) -> tuple[list[Contender], dict[str, str]]:
        ours = peers.rnnkern_contender(case)
        liar = Contender("liar", ours.run, lambda: [1.01 * a for a in ours.answer()])
        return [ours, liar], {}

    monkeypatch.setattr(layers, "contenders", with_a_liar)
    with pytest.raises(DisagreementError, match="liar disagrees with rnnkern"):
        layers.measure(replace(SMALL, training=training), layers.Machine(0.001), 0.001)


def test_a_step_that_is_one_percent_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lies(case: Any) -> Callable[[Any], Any]:
        honest = stream.rnnkern_step(case)
        return lambda x: 1.01 * honest(x)

    monkeypatch.setattr(stream, "onnxruntime_step", lies)
    with pytest.raises(DisagreementError, match="onnxruntime disagrees with rnnkern"):
        stream.measure("lstm", 8, 0.001)


def test_an_adder_that_is_one_percent_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    honest = adder.Torchs.gradients
    monkeypatch.setattr(adder.Torchs, "gradients", lambda self: [1.01 * g for g in honest(self)])
    with using_threads(1), pytest.raises(DisagreementError, match="torch disagrees with rnnkern"):
        adder.measure("lstm", 1, 0.001)


# -- what a peer's time is the time of ------------------------------------------------------------


class FakeLibrary:
    """A C++ library's adapter; notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads = 0

    def peer_new(self, *arguments: Any) -> int:
        self.threads = arguments[1]._obj.threads
        return 1

    def peer_run(self, *_: Any) -> int:
        self.calls.append("run")
        return 0

    def peer_delete(self, *_: Any) -> None:
        self.calls.append("delete")

    def peer_version(self) -> bytes:
        return b"2.6.3"


@contextmanager
def calls_from_the_bench() -> Iterator[Counter[str]]:
    """Counts, by full name, the functions that the bench's own lines call."""
    folder = str(Path(peers.__file__).parent)
    names: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        caller = frame.f_back if event == "call" else frame
        if caller is None or not caller.f_code.co_filename.startswith(folder):
            return
        if event == "call":
            names[f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"] += 1
        elif event == "c_call":
            owner = getattr(argument, "__self__", None)
            module = argument.__module__ or type(owner).__module__
            names[f"{module}.{argument.__name__}"] += 1

    sys.setprofile(note)
    try:
        yield names
    finally:
        sys.setprofile(None)


def assert_only_works(name: str, names: Counter[str]) -> None:
    """Nothing was called but libraries of numbers, the bench itself, and harmless builtins."""
    libraries = {
        "torch",
        "onnxruntime",
        "openvino",
        "jax",
        "jaxlib",
        "numpy",
        "rnnkern",
        "_ctypes",
        "ctypes",
        __name__.partition(".")[0],
    }
    harmless = {"len", "isinstance", "hasattr", "zip", "values", "update"}
    for called in names:
        module, _, function = called.partition(".")
        assert module in libraries or (module, function in harmless) == ("builtins", True), (
            f"{name} calls {called}"
        )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru-after", "gru", "lstm"])
def test_a_call_does_its_work_once_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, cell: str, training: bool
) -> None:
    library = FakeLibrary()
    monkeypatch.setattr(native, "_load", lambda name: library)
    able, _ = contenders(make_case(replace(SMALL, cell=cell, training=training)), threads=1)
    assert {"rnnkern", *native.LIBRARIES} <= {c.name for c in able}
    for contender in able:
        contender.run()
        library.calls.clear()
        with calls_from_the_bench() as names:
            kept = contender.run()
        assert_only_works(contender.name, names)
        backward = sum(count for name, count in names.items() if name.endswith(".backward"))
        if contender.name in native.LIBRARIES:
            assert library.calls == ["run"]
            continue
        assert backward == (training and contender.name != "jax")
        works = {
            "rnnkern": "rnnkern.layers.base.forward"
            if training
            else "rnnkern.layers.frozen.__call__",
            "torch": "torch.nn.modules.module._wrapped_call_impl",
            "onnxruntime": "onnxruntime.capi.onnxruntime_inference_collection.run",
            "openvino": "openvino._ov_api.infer",
            "jax": "jax._src.api.block_until_ready",
        }
        assert names[works[contender.name]] == 1, names
        if contender.name == "torch":
            assert not any(tensor.requires_grad for tensor in kept)  # type: ignore[attr-defined]


def test_openvino_reports_nothing_home() -> None:
    """Its package for that would start a process, beside the threads of what else is compared."""
    pytest.importorskip("openvino")
    done = run_python(
        """if True:
        import sys
        from rnnkern.bench.case import make_case
        from rnnkern.bench.openvino_peer import openvino_contender
        from rnnkern.bench.problems import Problem

        case = make_case(Problem("rnn", 1, 3, 8, training=False))
        assert not isinstance(openvino_contender(case, 1), str)
        loaded = [name for name, module in sys.modules.items() if module is not None]
        print([name for name in loaded if name.startswith("openvino_telemetry")])
        """
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_does_its_work_once_and_nothing_else(cell: str) -> None:
    case = make_case(Problem(cell, 1, 3, 8, training=False))
    found = {
        "rnnkern": stream.rnnkern_step(case),
        "torch": stream.torch_step(case),
        "onnxruntime": stream.onnxruntime_step(case),
    }
    works = {
        "torch": "torch.nn.modules.module._wrapped_call_impl",
        "onnxruntime": "onnxruntime.capi.onnxruntime_inference_collection.run",
    }
    for name, step in found.items():
        if isinstance(step, str):
            continue
        step(case.x[0])
        with calls_from_the_bench() as names:
            step(case.x[1])
        assert_only_works(name, names)
        if name in works:
            assert names[works[name]] == 1


def test_an_adders_step_does_its_work_once_and_nothing_else() -> None:
    pytest.importorskip("torch")
    ours = Adder(Settings(hidden=8, batch=4))
    theirs = adder.Torchs(ours.model, "lstm", adder.make_batch(ours), None)
    theirs.step()
    with calls_from_the_bench() as names:
        theirs.step()
    assert_only_works("torch", names)
    assert names["torch._tensor.backward"] == 1
    assert sum(n for name, n in names.items() if name.startswith("torch.nn.utils.clip_grad")) == 1


@pytest.mark.parametrize("training", [False, True])
def test_a_call_again_gives_the_same(training: bool) -> None:
    able, _ = contenders(make_case(replace(SMALL, training=training)), threads=1)
    for contender in able:
        first = [array.copy() for array in contender.answer()]
        for again, array in zip(contender.answer(), first, strict=True):
            np.testing.assert_array_equal(again, array, err_msg=contender.name)


# -- threads --------------------------------------------------------------------------------------


def test_onnxruntime_has_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session, seen = runtime.InferenceSession, []

    def noted(model: Any, options: Any, **rest: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return session(model, options, **rest)

    monkeypatch.setattr(runtime, "InferenceSession", noted)
    contenders(make_case(SMALL), threads=2)
    assert seen == [2]


def test_records_name_the_libraries_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "_load", lambda name: FakeLibrary() if name == "onednn" else None)
    path = tmp_path / "numbers.json"
    with using_threads(1):
        assert main(["bench", "memory", "--quick", "--json", str(path)]) == 0
    versions = json.loads(path.read_text())["facts"]["versions"]
    assert versions["onednn"] == "2.6.3"
    assert versions["onnxruntime"]
    assert "libxsmm" not in versions


def test_libraries_have_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    monkeypatch.setattr(native, "_load", lambda name: library)
    contenders(make_case(SMALL), threads=2)
    assert library.threads == 2


@pytest.fixture
def torch() -> Iterator[Any]:
    """PyTorch, which has its number of threads back afterwards."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with using_threads(2):
        yield torch
    torch.set_num_threads(before)


def test_pytorch_has_the_threads_asked_for(torch: Any) -> None:
    for count in (2, 1):
        set_peer_threads(count)
        assert (rk.get_num_threads(), torch.get_num_threads()) == (count, count)


def test_streams_are_measured_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(cell: str, hidden: int, seconds: float) -> dict[str, Any]:
        seen.append(rk.get_num_threads())
        return {}

    monkeypatch.setattr(stream, "measure", noted)
    monkeypatch.setattr(stream, "stream_table", lambda lines: "")
    with using_threads(2):
        assert main(["bench", "stream", "--quick", "--cell", "rnn", "--threads", "2"]) == 0
    assert seen
    assert set(seen) == {1}


def test_a_run_gives_threads_back(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(run: Any) -> None:
        seen.append((rk.get_num_threads(), torch.get_num_threads()))

    monkeypatch.setattr(command._Run, "memory", noted)
    torch.set_num_threads(2)
    assert main(["bench", "memory"]) == 0
    assert seen == [(1, 1)]
    assert (rk.get_num_threads(), torch.get_num_threads()) == (2, 2)


def test_pytorchs_adder_has_the_threads_asked_for(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noted(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Spread]:
        seen.append((rk.get_num_threads(), torch.get_num_threads()))
        calls["rnnkern"]()
        return alternated(calls, seconds)

    monkeypatch.setattr(adder, "alternate", noted)
    adder.measure("lstm", 2, 0.0)
    assert seen == [(2, 2)]


def test_the_process_of_pytorchs_memory_has_the_threads_asked_for(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noted(name: str, problem: Problem) -> float:
        seen.append((name, problem, rk.get_num_threads(), torch.get_num_threads()))
        return 0.0

    monkeypatch.setattr(memory, "_peak", noted)
    memory._main("torch", json.dumps(SMALL.describe()), "2")
    assert seen == [("torch", SMALL, 2, 2)]


def test_two_threads_are_measured_against_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def each_once(calls: dict[str, Callable[[], object]], _: float) -> dict[str, Spread]:
        for call in calls.values():
            call()
        return {"1": Spread(0.0, 6.0, 9.0), "2": Spread(0.0, 4.0, 9.0)}

    def noted(case: Any) -> Any:
        return SimpleNamespace(run=lambda: seen.append(rk.get_num_threads()))

    monkeypatch.setattr(cost, "make_case", lambda problem: None)
    monkeypatch.setattr(cost, "rnnkern_contender", noted)
    monkeypatch.setattr(cost, "alternate", each_once)
    with using_threads(2):
        lines = cost.measure_threads("lstm", 2, 0.0)
    assert seen == [1, 2] * len(lines)
    for row in cost.threads_table(lines).splitlines()[2:]:
        assert row.split("|")[3:-1] == [" 6.00 s     ", " 2       ", " 4.00 s ", " 1.50         "]


# -- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_line_is_of_medians(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    def with_a_peer(case: Any, threads: int) -> tuple[list[Contender], dict[str, str]]:
        ours = peers.rnnkern_contender(case)
        return [ours, replace(ours, name="peer")], {}

    monkeypatch.setattr(layers, "contenders", with_a_peer)
    monkeypatch.setattr(layers, "alternate", alternated)
    problem = replace(SMALL, training=training)
    line = layers.measure(problem, layers.Machine(0.001), 0.001)
    assert line["ratios"] == {"peer": 3.0}
    assert line["results"]["rnnkern"]["ms"] == 2000.0
    reads = problem.steps * (2 if training else 1)
    assert line["intensity"] == pytest.approx(problem.flops / (reads * problem.recurrent_bytes))
    assert (
        layers.measure(replace(problem, cell="mingru"), layers.Machine(0.001), 0.001)["intensity"]
        is None
    )


def test_steps_and_blocks_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "alternate", alternated)
    line = stream.measure("lstm", 8, 0.0)
    assert line["step_ms"] == {**dict.fromkeys(line["step_ms"], 6000.0), "rnnkern": 2000.0}
    assert line["block_ms"] == {**dict.fromkeys(line["block_ms"], 6000.0), "rnnkern": 2000.0}


def test_costs_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "make_case", lambda problem: None)
    monkeypatch.setattr(cost, "rnnkern_contender", lambda case: SimpleNamespace(run=None))
    monkeypatch.setattr(cost, "alternate", alternated)
    assert {line["ms"] for line in cost.measure_cost("lstm", 0.0)} == {6000.0}


def test_small_calls_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Spread]:
        for call in calls.values():
            call()
        return alternated(calls, seconds)

    monkeypatch.setattr(cost, "alternate", called)
    line = cost.measure_calls("gru", 0.0)
    assert {value for name, value in line.items() if name.endswith("_us")} == {6e6}
    assert "| gru  | 6000000.0 " in cost.calls_table([line])


def test_tables_of_the_adder_and_of_streams_have_the_peers_time_over_ours() -> None:
    times = {"rnnkern": {"ms": 2.0}, "torch": {"ms": 5.0}}
    line = {"cell": "lstm", "threads": 1, "results": times, "shares": {"Adam": 1.0}}
    assert "| 2.50 " in adder.adder_table([line])
    steps = {"rnnkern": 2.0, "torch": 5.0}
    line = {"cell": "lstm", "hidden": 8, "step_ms": steps, "block_ms": {"rnnkern": 1.0}}
    assert "| torch 2.50 " in stream.stream_table([line])

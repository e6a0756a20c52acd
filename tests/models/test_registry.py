# SPDX-License-Identifier: Apache-2.0
"""An entry in the registry of cells is all that the models, files and programs need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.adder import Training
from rnnkern.bench import cost
from rnnkern.cells import CELLS
from rnnkern.cells.entry import Cell
from rnnkern.cli import main

from support.threads import using_threads


class TwinGRU(rk.GRU):
    """A GRU under another name."""


@pytest.fixture(autouse=True)
def twin(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a cell that none of the package's modules names."""
    cell = Cell("twin", "the twin", TwinGRU, rk.GRUCell, {"reset": "after"})
    monkeypatch.setitem(CELLS, cell.name, cell)
    return cell.name


def test_a_layer_is_saved_and_loaded(tmp_path: Path, twin: str) -> None:
    layer = CELLS[twin].build(3, 4, seed=0)
    rk.save(tmp_path / "layer", layer)
    loaded = rk.load(tmp_path / "layer")
    assert type(loaded) is TwinGRU
    assert loaded.config() == layer.config()
    assert loaded.params == layer.params


def test_a_model_of_it_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    model = rk.Seq2Seq(
        5, 5, 8, cell="TwinGRU", cell_options={"reset": "after"}, bos=0, eos=0, seed=0
    )
    assert type(model.encoder) is type(model.decoder) is TwinGRU
    source, target = np.arange(6).reshape(3, 2) % 5, np.arange(8).reshape(4, 2) % 5
    logits, tape = model.forward(source, None, target)
    _, dlogits = rk.softmax_cross_entropy(logits, target)
    rk.Adam(model.params).step(tape.backward(dlogits))
    rk.save(tmp_path / "model", model)
    loaded = rk.load(tmp_path / "model")
    for ours, theirs in zip(
        model.beam(source, None, 4, 2), loaded.beam(source, None, 4, 2), strict=True
    ):
        assert np.array_equal(ours, theirs)


def test_the_adder_learns_and_answers(
    tmp_path: Path, twin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tmp_path / "adder")]
    sizes = ["--digits", "1", "--hidden", "8", "--batch", "8", "--steps", "2", "--share", "0.5"]
    assert main(["adder", "train", "--cell", twin, *sizes, *model]) == 0
    assert type(Training.load(tmp_path / "adder").adder.model.encoder) is TwinGRU
    assert main(["adder", "ask", *model, "3+4"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["adder", "train", "--help"])
    assert twin in capsys.readouterr().out.split()


def test_programs_take_it(tmp_path: Path, twin: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    options = ["--quick", "--cell", twin, "--output", str(tmp_path)]
    assert main(["explore", "gradients", *options]) == 0
    assert f"\n{twin} " in capsys.readouterr().out
    assert (tmp_path / "gradients.png").exists()


def test_the_bench_measures_it(tmp_path: Path, twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_BASE", (1, 2, 8))
    monkeypatch.setattr(cost, "_SCALED", ((1, 2, 8),))
    numbers = tmp_path / "numbers.json"
    with using_threads(1):
        command = ["bench", "layers", "stream", "adder", "cost"]
        assert main([*command, "--quick", "--cell", twin, "--json", str(numbers)]) == 0
    record = json.loads(numbers.read_text())
    for subject in ("layers", "stream", "adder", "cost"):
        assert {line["cell"].partition(",")[0] for line in record[subject]} == {twin}
    for line in record["layers"] + record["stream"] + record["adder"]:
        assert line["absent"]["torch"] == "has no such cell"
    for line in record["stream"]:
        assert line["absent"]["onnxruntime"] == "has no such cell"

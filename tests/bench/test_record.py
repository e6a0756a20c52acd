# SPDX-License-Identifier: Apache-2.0
"""A record says where its numbers come from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import record
from rnnkern.cli import main
from rnnkern.explore import EXPERIMENTS
from rnnkern.explore.result import Result

from support.threads import using_threads


def assert_names_its_origin(facts: dict[str, object], threads: int) -> None:
    build = facts["build"]
    assert isinstance(build, dict)
    assert re.fullmatch(r"([0-9a-f]{12}(-dirty)?)?", build["commit"])
    assert re.match(r"\w+ \d+\.", build["compiler"])
    assert "-O" in build["flags"] or "-g" in build["flags"]
    assert re.fullmatch(r"((avx2|avx512\w*|amx)(;|$))*", build["built for"])
    assert facts["processor"]
    assert re.fullmatch(r"family \S+ model \S+ step \S+", str(facts["processor id"]))
    assert facts["threads"] == threads
    assert isinstance(facts["cores"], int)
    versions = facts["versions"]
    assert isinstance(versions, dict)
    assert versions["numpy"] == np.__version__
    assert versions["rnnkern"] == rk.info()["version"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(facts["date"]))
    assert str(facts["isa"]).startswith(rk.info()["instruction set"].split()[0])


def test_facts() -> None:
    with using_threads(1):
        assert_names_its_origin(record.facts(), 1)


def test_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.write(path, {"table": [1, 2]})
    text = path.read_text(encoding="utf-8")
    written = json.loads(text)
    assert list(written) == ["facts", "table"]
    assert written["facts"] == record.facts()
    assert text.startswith('{\n "facts": {')
    assert text.endswith("}\n")
    record.write(path, {"times": [], "facts": "own"}, indent=None)
    assert path.read_text(encoding="utf-8") == '{"facts": "own", "times": []}\n'


def test_the_benchs_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    with using_threads(1):
        assert main(["bench", "memory", "--quick", "--json", str(path)]) == 0
        assert_names_its_origin(json.loads(path.read_text())["facts"], 1)


def test_an_experiments_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    options = ["--quick", "--cell", "rnn", "--seeds", "2", "--output", str(tmp_path / "pictures")]
    assert "clipping" in EXPERIMENTS
    assert main(["explore", "clipping", *options, "--record", str(path)]) == 0
    written = json.loads(path.read_text())
    assert_names_its_origin(written["facts"], rk.get_num_threads())
    assert capsys.readouterr().out.startswith(Result.from_record(written).table() + "\n\n")

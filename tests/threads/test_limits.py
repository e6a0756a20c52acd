# SPDX-License-Identifier: Apache-2.0
"""How many threads a call may use: what was asked for, and what the machine allows."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import threadpoolctl  # type: ignore[import-untyped]

import rnnkern as rk
from rnnkern import _core

from support.processes import run_python
from support.threads import using_threads

CORES = len(os.sched_getaffinity(0))
# Asks for as many threads as it is told to have cores, and computes.
COMPUTE = (
    "import numpy as np, rnnkern as rk; from rnnkern import _core; _core.pretend_cores({cores});"
    "layer = rk.LSTM(64, 256, seed=0); y, _ = layer(np.ones((5, 16, 64), np.float32));"
    "print(rk.get_num_threads(), layer.plan(5, 16)['threads'])"
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "2,4"}, 2),
        ({"RNNKERN_NUM_THREADS": "2", "OMP_NUM_THREADS": "3"}, 2),
        ({"RNNKERN_NUM_THREADS": "nonsense", "OMP_NUM_THREADS": "3"}, 3),
        *[({"OMP_NUM_THREADS": text}, 4) for text in ("", "0", "-1", "two", "2x", "1.5")],
        *[({"OMP_NUM_THREADS": text}, 4) for text in ("100000", "9" * 30)],
    ],
    ids=str,
)
def test_the_environment(variables: dict[str, str], expected: int) -> None:
    environment = {"RNNKERN_NUM_THREADS": "", "OMP_NUM_THREADS": "", **variables}
    done = run_python(COMPUTE.format(cores=4), **environment)
    assert done.returncode == 0, done.stderr
    assert [int(n) for n in done.stdout.split()] == [expected, expected]


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "RNNKERN_NUM_THREADS"])
def test_no_more_threads_than_cores(variable: str) -> None:
    done = run_python(COMPUTE.format(cores=0), **{variable: "100000"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) == CORES


def test_what_is_asked_for_in_vain_is_told() -> None:
    with using_threads(2):
        for count in (1000, 2000, 2**31, 2**40):
            rk.set_num_threads(count)
            assert rk.get_num_threads() == 2
        rk.set_num_threads(1000)
        told = rk.info()["threads"]
        assert told.startswith("2 (1000 asked for by set_num_threads, 2 by ")
        with rk.threads(1):
            assert rk.info()["threads"].startswith("1 (1 asked for by threads(), 2 by ")


def test_the_limit_is_the_processs() -> None:
    seen: list[int] = []

    def work() -> None:
        seen.append(rk.get_num_threads())
        rk.set_num_threads(3)

    with using_threads(4):
        rk.set_num_threads(2)
        thread = Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [2]
        assert rk.get_num_threads() == 3


def test_a_threads_own_limit() -> None:
    seen: list[int] = []
    with using_threads(4):
        rk.set_num_threads(2)
        with rk.threads(3):
            assert rk.get_num_threads() == 3
            with rk.threads(1):
                thread = Thread(target=lambda: seen.append(rk.get_num_threads()))
                thread.start()
                thread.join()
                assert rk.get_num_threads() == 1
                assert rk.LSTM(64, 256).plan(5, 16)["threads"] == 1
            assert rk.get_num_threads() == 3
            with suppress(KeyError), rk.threads(99):
                assert rk.get_num_threads() == 4
                raise KeyError
            assert rk.get_num_threads() == 3
        assert rk.get_num_threads() == 2
    assert seen == [2]


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True])
def test_number_of_threads_is_checked(count: Any) -> None:
    before = rk.get_num_threads()
    message = f"count must be a positive .*got '?{count}"
    with pytest.raises((TypeError, ValueError), match=message):
        rk.set_num_threads(count)
    with pytest.raises((TypeError, ValueError), match=message), rk.threads(count):
        pass
    assert rk.get_num_threads() == before


def test_the_affinity_mask() -> None:
    """Of the thread that calls, as it is at the call; the team's threads follow it."""
    done = run_python(
        "import os, numpy as np, rnnkern as rk\n"
        "layer = rk.LSTM(64, 256, seed=0)\n"
        "x = np.ones((50, 16, 64), np.float32)\n"
        "want = layer(x)[0]\n"
        "every = os.sched_getaffinity(0)\n"
        "os.sched_setaffinity(0, {min(every)})\n"
        "assert rk.get_num_threads() == 1, rk.info()\n"
        "assert np.array_equal(layer(x)[0], want)\n"
        "os.sched_setaffinity(0, every)\n"
        "assert rk.get_num_threads() == len(every)\n"
        "assert np.array_equal(layer(x)[0], want)\n"
        "for task in os.listdir('/proc/self/task'):\n"
        "    assert os.sched_getaffinity(int(task)) == every\n"
    )
    assert done.returncode == 0, done.stderr


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


V1 = {"proc/self/cgroup": "9:name=systemd:/\n4:cpu,cpuacct:/a/b\n1:cpuset:/"}
V2 = {"proc/self/cgroup": "0::/a/b"}


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, np.inf),
        ({"proc/self/cgroup": "nonsense"}, np.inf),
        (V2, np.inf),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000"}, np.inf),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "nonsense"}, np.inf),
        # A group above it may have less, and a container sees its own as the root.
        (
            V2
            | {
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
            },
            0.5,
        ),
        (V2 | {"sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        (V2 | {"sys/fs/cgroup/unified/a/cpu.max": "300000 100000"}, 3.0),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000",
            },
            np.inf,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1.0,
        ),
    ],
)
def test_the_quota_of_control_groups(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    assert _core.cpu_quota(write(tmp_path, files)) == cpus


@pytest.mark.parametrize(("quota", "threads"), [(50000, 1), (100000, 1), (150000, 2), (900000, 4)])
def test_a_quota_limits_threads(tmp_path: Path, quota: int, threads: int) -> None:
    root = write(tmp_path, V2 | {"sys/fs/cgroup/a/cpu.max": f"{quota} 100000"})
    with using_threads(4):
        _core.pretend_cores(4, root)
        assert rk.get_num_threads() == threads
        assert rk.LSTM(64, 256).plan(5, 16)["threads"] == threads
        assert ("quota" in rk.info()["threads"]) == (threads < 4)


def test_threadpoolctl_limits() -> None:
    rk.register_threadpoolctl()
    rk.register_threadpoolctl()
    with using_threads(4):
        ours = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "rnnkern"]
        assert [pool["num_threads"] for pool in ours] == [4]
        for options in ({"limits": 1}, {"limits": {"rnnkern": 1}}):
            with threadpoolctl.threadpool_limits(**options):
                assert rk.get_num_threads() == 1
            assert rk.get_num_threads() == 4
        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
            assert rk.get_num_threads() == 4


@pytest.mark.parametrize("first", ["threadpoolctl", "rnnkern"])
def test_threadpoolctl_is_not_needed(first: str) -> None:
    """It is not imported by us, and where it was before us we are known to it."""
    done = run_python(
        f"import {first}, sys, rnnkern\n"
        f"assert ('threadpoolctl' in sys.modules) == ({first!r} == 'threadpoolctl')\n"
        "import threadpoolctl\n"
        "print(any(p['user_api'] == 'rnnkern' for p in threadpoolctl.threadpool_info()))\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(first == "threadpoolctl")


def test_pytorchs_threads_are_its_own() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        with using_threads(4):
            torch.set_num_threads(1)
            assert rk.get_num_threads() == 4
            rk.set_num_threads(2)
            assert torch.get_num_threads() == 1
            torch.set_num_threads(2)
            with rk.threads(1):
                assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

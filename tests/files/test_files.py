# SPDX-License-Identifier: Apache-2.0
"""Where ``save`` writes: what stood there is safe from errors, kills and other writers."""

from __future__ import annotations

import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import rnnkern as rk

from support.processes import run_python

OLD, NEW = rk.Linear(2, 1, seed=0), rk.Linear(3, 2, seed=1)
ROOT = os.geteuid() == 0


def is_saved(path: Path, *models: rk.Linear) -> bool:
    """Whether ``path`` holds one of the models, whole."""
    found = rk.load(path)
    return any(
        found.config() == model.config()
        and all(found.params[name].tobytes() == p.tobytes() for name, p in model.params.items())
        for model in models
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_links_are_written_through(tmp_path: Path) -> None:
    target = tmp_path / "away" / "target"
    target.parent.mkdir()
    rk.save(target, OLD)
    (tmp_path / "near").symlink_to(target)
    (tmp_path / "far").symlink_to("near")
    rk.save(tmp_path / "far", NEW)
    assert (tmp_path / "far").is_symlink()
    assert (tmp_path / "near").is_symlink()
    assert not target.is_symlink()
    assert is_saved(target, NEW)
    assert names(target.parent) == ["target"]

    (tmp_path / "dangling").symlink_to("away/made")
    rk.save(tmp_path / "dangling", NEW)
    assert (tmp_path / "dangling").is_symlink()
    assert is_saved(tmp_path / "away" / "made", NEW)

    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"symbolic links: '.*loop'"):
        rk.save(tmp_path / "loop", NEW)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o777])
def test_a_file_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "model"
    rk.save(path, OLD)
    path.chmod(mode)
    rk.save(path, NEW)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert is_saved(path, NEW)


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        rk.save(tmp_path / "model", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o640


def test_it_is_nobody_elses_before_it_is_whole(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model"
    rk.save(path, OLD)
    path.chmod(0o600)
    modes: list[int] = []
    change = os.fchmod

    def look(descriptor: int, mode: int) -> None:
        modes.extend(p.stat().st_mode & 0o077 for p in tmp_path.iterdir())
        change(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", look)
    rk.save(path, NEW)
    assert len(modes) == 2
    assert not any(modes)


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "model"
    rk.save(path, OLD)
    os.chown(path, 1234, 5678)
    rk.save(path, NEW)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_a_read_only_file_stays(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model"
    rk.save(path, OLD)
    path.chmod(0o444)
    if ROOT:  # which may write it nevertheless
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"may not be written: '.*model'"):
        rk.save(path, NEW)
    assert is_saved(path, OLD)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_only_files_are_replaced_and_read(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    path = tmp_path / kind
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            server.bind(kind)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/null")
        before = path.stat()
        message = "is a directory" if kind == "folder" else "expected a regular file"
        with pytest.raises(OSError, match=f"{message}.*{kind}"):
            rk.save(path, NEW)
        # A pipe that nobody writes to would make an ordinary open wait for ever.
        with pytest.raises(OSError, match=kind):
            rk.load(path)
        assert path.stat().st_ino == before.st_ino
        assert names(tmp_path) == [kind]


@pytest.mark.parametrize("length", [240, 255])
def test_long_names(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("m" * length)
    for model in (OLD, NEW):
        rk.save(path, model)
        assert is_saved(path, model)
    with pytest.raises(OSError, match=r"File name too long: '.*/m{256}'"):
        rk.save(tmp_path / ("m" * 256), NEW)
    assert names(tmp_path) == ["m" * length]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'.*no/model'") as caught:
        rk.save(tmp_path / "no" / "model", NEW)
    assert caught.value.filename == str(tmp_path / "no" / "model")


def test_the_file_and_its_folder_reach_the_disk_in_turn(tmp_path: Path, monkeypatch: Any) -> None:
    done = []

    def sync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def rename(self: Path, target: Path) -> Path:
        done.append("rename")
        os.rename(self, target)  # noqa: PTH104
        return target

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    rk.save(tmp_path / "model", NEW)
    assert done == ["file", "rename", "folder"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model"
    rk.save(path, OLD)
    content = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in ("os.fsync", "os.fchmod", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(step, fail)
            with pytest.raises(OSError, match=r"No space left on device: '.*model'"):
                rk.save(path, NEW)
        assert path.read_bytes() == content
        assert names(tmp_path) == ["model"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    rk.save(path, OLD)
    content = path.read_bytes()
    done = run_python(
        "import resource, sys\n"
        "import rnnkern as rk\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # bytes of a file
        "try:\n"
        "    rk.save(sys.argv[1], rk.Linear(300, 300))\n"
        "except OSError as error:\n"
        "    print(error)\n".replace("sys.argv[1]", repr(str(path)))
    )
    assert done.stdout == f"[Errno 27] File too large: '{path}'\n", done.stderr
    assert path.read_bytes() == content
    assert names(tmp_path) == ["model"]


def test_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    # A process stopped in the middle of writing; then it is killed.
    code = (
        "import os, signal, sys, rnnkern as rk\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "rk.save(sys.argv[1], rk.Linear(3, 2))\n"
    )
    ours = [f".rnnkern-{16 * 'f'}.tmp", ".rnnkern-tmp", ".model.tmp", ".rnnkern-0123.tmp"]
    for name in ours[1:]:
        (tmp_path / name).touch()
    (tmp_path / ours[0]).mkdir()  # of the right name, but no file
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model")]) as writer:
        try:
            os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WNOWAIT)
            (alive,) = set(names(tmp_path)) - set(ours)
            rk.save(tmp_path / "other", NEW)
            assert alive in names(tmp_path), "a living process's file was removed"
        finally:
            writer.kill()
    assert not (tmp_path / "model").exists()
    rk.save(tmp_path / "other", NEW)
    assert names(tmp_path) == sorted([*ours, "other"])


SAVE_FOR_EVER = """
import sys
import numpy as np
import rnnkern as rk
models = [rk.Linear(300, 200, seed=seed) for seed in map(int, sys.argv[2:])]
print("ready", flush=True)
while True:
    for model in models:
        rk.save(sys.argv[1], model)
"""


def saving(path: Path, *seeds: int) -> subprocess.Popen[bytes]:
    """A process that saves, again and again, Linear(300, 200) of these seeds in turn."""
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(path), *map(str, seeds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_killed_writers_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    models = [rk.Linear(300, 200, seed=seed) for seed in (0, 1)]
    rk.save(path, models[0])
    rng = random.Random(0)
    for _ in range(8):
        with saving(path, 0, 1) as writer:
            time.sleep(rng.uniform(0.0, 0.03))
            writer.kill()
        assert writer.returncode == -signal.SIGKILL
        assert is_saved(path, *models)
        rk.save(path, models[0])
        assert names(tmp_path) == ["model"]


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    models = [rk.Linear(300, 200, seed=seed) for seed in (0, 1)]
    rk.save(path, models[0])
    writers = [saving(path, seed) for seed in (0, 1)]
    try:
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            assert is_saved(path, *models)
            rk.save(path, models[1])
    finally:
        for writer in writers:
            alive = writer.poll() is None
            writer.kill()
            writer.communicate()
            assert alive, "a writer got in another's way"
    rk.save(path, models[0])
    assert names(tmp_path) == ["model"]


def test_another_thread_may_go_on_learning(tmp_path: Path) -> None:
    # The checksum is of the bytes that were written, whatever the array holds by then.
    model = rk.Linear(300, 200, seed=0)
    saved = threading.Event()

    def learn() -> None:
        while not saved.is_set():
            model.params["weight"][...] += 1.0

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        for _ in range(10):
            rk.save(tmp_path / "model", model)
            rk.load(tmp_path / "model")
    finally:
        saved.set()
        thread.join()

# SPDX-License-Identifier: Apache-2.0
"""Teams of threads: forks, interruptions, the end of the interpreter, callers that share cores."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

import rnnkern as rk
from rnnkern import _core

from support.processes import run_python

# What children are told to compute: a layer's pass forward and backward, and what it must give.
PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
import rnnkern as rk

layer = rk.LSTM(64, 256, seed=0)
x = np.random.default_rng(0).standard_normal((50, 16, 64)).astype(np.float32)

def compute(x=x):
    signal.alarm(60)
    y, _, tape = layer.forward(x)
    dx, _, grads = tape.backward(y)
    signal.alarm(0)
    return [y, dx, *grads.values()]

def same(a, b):
    return len(a) == len(b) and all(np.array_equal(u, v) for u, v in zip(a, b))

def child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os._exit(0 if work() else 1)
    assert os.waitpid(pid, 0)[1] == 0
"""


def run(code: str, **environment: str) -> str:
    done = run_python(PRELUDE + textwrap.dedent(code), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_has_a_team_of_its_own() -> None:
    run(
        """
        want = compute()
        assert layer.plan(50, 16)["threads"] == len(os.sched_getaffinity(0))
        threads = rk.get_num_threads()

        def work():
            fine = same(compute(), want) and rk.get_num_threads() == threads
            # Ours beside the main one, and NumPy's none.
            fine = fine and len(os.listdir("/proc/self/task")) == threads
            return fine and not child(lambda: same(compute(), want))

        child(work)
        assert same(compute(), want)
        """,
        OPENBLAS_NUM_THREADS="1",
    )


def test_pools_of_forked_processes_beside_pytorchs_threads() -> None:
    """PyTorch's wheel brings the GNU OpenMP library, whose threads no child may ask for again."""
    pytest.importorskip("torch")
    run(
        """
        import multiprocessing, warnings
        from concurrent.futures import ProcessPoolExecutor
        import torch

        warnings.simplefilter("ignore")
        torch.set_num_threads(2)
        torch.ones(2_000_000).exp()
        want = layer(x)[0]
        context = multiprocessing.get_context("fork")

        def layers(_):
            return layer(x)[0]

        def frozen(_):
            large = rk.LSTM(64, 512, seed=0)
            y = large.freeze()(x)[0]
            return np.array_equal(y, large.forward(x)[0]) and np.array_equal(y, large(x)[0])

        with context.Pool(1) as pool:
            assert np.array_equal(pool.map_async(layers, [0]).get(60)[0], want)
            assert pool.map_async(frozen, [0]).get(60) == [True]
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            for y in pool.map(layers, range(4), timeout=60):
                assert np.array_equal(y, want)
        assert np.array_equal(layer(x)[0], want)
        """
    )


def test_forks_while_other_threads_compute() -> None:
    run(
        """
        want = compute()
        stop = False

        def others():
            while not stop:
                layer(x)

        threads = [threading.Thread(target=others) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            child(lambda: same(compute(), want))
        stop = True
        for thread in threads:
            thread.join()
        assert same(compute(), want)
        """
    )


INTERRUPTED = """
from rnnkern import _core

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGUSR1, interrupt)

def answered(call, threads=2):
    # In time of the processors, as they may be busy with other things too.
    sent = []

    def send():
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Timer(0.2, send).start()
    try:
        call()
    except KeyboardInterrupt:
        late = time.process_time() - sent[0]
    else:
        raise AssertionError("not interrupted")
    assert late < 0.15 * threads, late
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        ("rk.LSTM(8, 64, seed=0)", "np.ones((200_000, 4, 8), np.float32)"),
        ("rk.GRU(64, 2048, seed=0)", "np.ones((300, 1, 64), np.float32)"),
        ("rk.LSTM(2048, 1024, seed=0)", "np.ones((256, 64, 2048), np.float32)"),
        ("rk.LSTM(64, 1024, seed=0)", "np.zeros((64, 256), int)"),
        ("rk.Linear(8192, 1024, seed=0)", "np.ones((10_000, 8192), np.float32)"),
    ],
)
def test_an_interruption_is_answered(layer: str, x: str, threads: int) -> None:
    run(
        INTERRUPTED
        + textwrap.dedent(f"""
        _core.pretend_cores({threads})
        long, x_long = {layer}, {x}
        answered(lambda: long(x_long), {threads})
        if not isinstance(long, rk.Linear):
            part = x_long[: len(x_long) // 4]
            y, _, tape = long.forward(part)
            answered(lambda: [tape.backward(y) for _ in range(100)], {threads})
        assert same(compute(), compute())
        """)
    )


def test_an_interrupted_call_leaves_the_callers_things_as_they_were() -> None:
    run(
        INTERRUPTED
        + textwrap.dedent("""
        layer = rk.LSTM(8, 128, seed=0)
        params = {name: p.copy() for name, p in layer.params.items()}
        x = np.ones((100_000, 4, 8), np.float32)
        state = np.ones((1, 4, 128), np.float32), np.ones((1, 4, 128), np.float32)
        answered(lambda: layer(x, state))
        answered(lambda: layer.forward(x, state))
        stream = layer.stream(batch=4)
        stream.state = state
        answered(lambda: stream.block(x))
        for kept in (state, stream.state):
            assert all((s == 1).all() for s in kept)
        short = x[:20_000]
        y, last, tape = layer.forward(short, state)
        want = tape.backward(y, state)[2]
        answered(lambda: [tape.backward(y, state) for _ in range(100)])
        assert all((s == 1).all() for s in state)
        got = tape.backward(y, state)[2]
        assert all(np.array_equal(got[name], want[name]) for name in want)
        assert all(np.array_equal(layer.params[name], p) for name, p in params.items())
        """)
    )


def test_only_an_exception_of_the_handler_ends_a_call() -> None:
    run(
        """
        seen = []
        signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        long = np.ones((20_000, 4, 64), np.float32)
        y = layer(long)[0]
        while len(seen) < 2:
            y = layer(long)[0]
        signal.setitimer(signal.ITIMER_REAL, 0)
        with rk.threads(1):
            assert np.array_equal(layer(long)[0], y)
        """
    )


def test_a_handler_may_fork() -> None:
    """In the middle of a call: its child cannot finish it and says so; the parent goes on."""
    run(
        """
        children = []

        def fork(*_):
            if not children:
                pid = os.fork()
                if pid == 0:
                    signal.alarm(60)
                children.append(pid)

        signal.signal(signal.SIGUSR1, fork)
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        x = np.ones((100_000, 4, 64), np.float32)
        try:
            while not children:
                layer(x)
        except RuntimeError as error:
            assert "forked in the middle of a call" in str(error)
            os._exit(0 if same(compute(), compute()) else 1)
        if children[0] == 0:  # it forked between two calls
            os._exit(0)
        assert os.waitpid(children[0], 0)[1] == 0
        """
    )


@pytest.mark.parametrize("kind", ["forward", "backward", "step"])
def test_the_interpreter_may_end_while_a_daemon_thread_computes(kind: str) -> None:
    body = {
        "forward": "layer(x)",
        "backward": "compute_daemon()",
        "step": "stream.step(x[0])",
    }[kind]
    for delay in (0.0, 0.01, 0.2):
        run(
            f"""
            stream = rk.LSTM(64, 512, seed=0).stream(batch=16)

            def compute_daemon():
                y, _, tape = layer.forward(x)
                tape.backward(y)

            def work():
                while True:
                    {body}

            threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
            for thread in threads:
                thread.start()
            time.sleep({delay})
            """
        )


def test_calls_of_several_threads_share_the_cores() -> None:
    """Eight callers have eight threads and not sixteen: those that are ours stay few."""
    run(
        """
        want = compute()
        results = []
        barrier = threading.Barrier(8)

        def work():
            barrier.wait(60)
            for _ in range(5):
                results.append(same([layer(x)[0]], want[:1]))

        threads = [threading.Thread(target=work) for _ in range(8)]
        before = len(os.listdir("/proc/self/task"))
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, len(os.listdir("/proc/self/task")))
            time.sleep(0.001)
        assert results == [True] * 40
        assert most <= before + 8 + len(os.sched_getaffinity(0)), most
        """,
        OPENBLAS_NUM_THREADS="1",
    )


def test_no_thread_where_the_system_gives_none() -> None:
    """The call goes on alone."""
    run(
        """
        import resource

        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        if os.getuid() == 0:
            os.setgid(12345), os.setuid(12345)
        y = layer(x)[0]
        with rk.threads(1):
            assert np.array_equal(layer(x)[0], y)
        """,
        OPENBLAS_NUM_THREADS="1",
    )


def test_no_openmp() -> None:
    maps = run(
        """
        compute()
        print(open("/proc/self/maps").read())
        """
    )
    assert "libgomp" not in maps
    assert Path(_core.__file__).name in maps
    assert rk.info()["threads"]

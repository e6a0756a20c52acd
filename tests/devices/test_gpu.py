# SPDX-License-Identifier: Apache-2.0
"""What a GPU alone can show: no copies, streams, no waiting, graphs, the same bits, real sizes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import devices
from rnnkern.adder import Adder, Settings, Training

from support import reference
from support.compare import assert_close, assert_same_bits
from support.gpu import the_gpu
from support.layers import WITH_PRODUCT, make
from support.locate import assert_right
from support.processes import run_python
from support.reference import Array

pytestmark = pytest.mark.gpu

COMPUTES = ["tfloat32", "bfloat16", "float16", None]
# Norm-wise against float64, on 20 steps: the operands are rounded to 11, 8 and 11 bits.
TOLERANCE = {"tfloat32": 4e-3, "bfloat16": 4e-2, "float16": 4e-3, None: 1e-5}


@pytest.fixture
def gpu() -> devices.Cuda:
    """The device."""
    return the_gpu()


@pytest.fixture
def poison(gpu: devices.Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is NaN, so that what is read before it is written shows."""
    real = gpu.xp.empty

    def empty(*args: Any, **options: Any) -> Any:
        array = real(*args, **options)
        array.view(np.uint8).fill(255)
        return array

    monkeypatch.setattr(gpu.xp, "empty", empty)


@pytest.fixture
def spin(gpu: devices.Cuda) -> Iterator[Any]:
    """Called, it keeps the current stream busy for about a second."""
    kernel = gpu.xp.RawKernel(
        r"""
        extern "C" __global__ void spin(long long cycles) {
          const long long begin = clock64();
          while (clock64() - begin < cycles) {
          }
        }
        """,
        "spin",
    )
    kernel((1,), (1,), (np.int64(1),))  # compiled before it is wanted
    yield lambda: kernel((1,), (1,), (np.int64(1_500_000_000),))
    gpu.xp.cuda.Device().synchronize()


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def twins(gpu: devices.Cuda, compute: str | None, *cell_and_sizes: Any, **options: Any) -> Any:
    """A layer on the CPU and one on the GPU with the same parameters."""
    source = make(*cell_and_sizes, **options)
    layer = type(source)(**{**source.config(), "device": "cuda", "compute": compute})
    for name, p in source.params.items():
        layer.params[name][...] = gpu.put(p)
    return source, layer


def step(layer: Any, x: Any, lengths: Any = None) -> list[Any]:
    """A forward and a backward pass: everything that comes of them."""
    y, _, tape = layer.forward(x, None, lengths)
    dx, _, grads = tape.backward(y)
    return [y, *([] if dx is None else [dx]), *grads.values()]


def agree(gpu: devices.Cuda, layer: Any, got: Any, want: Any, tolerance: float) -> None:
    """y, dx and the gradients by name are those wanted; a failure tells where they are not."""
    (y, dx, grads), (want_y, want_dx, want_grads) = got, want
    assert_right(
        f"{layer.config()}",
        {"y": gpu.get(y), "dx": gpu.get(dx)} | {n: gpu.get(g) for n, g in grads.items()},
        {"y": want_y, "dx": want_dx} | want_grads,
        tolerance,
        layer.hidden_size,
        layer.plan(*y.shape[:2], training=True),
    )


def check_a_step(
    gpu: devices.Cuda,
    cell: str,
    source: Any,
    layer: Any,
    batch: int,
    *,
    ragged: bool,
    tolerance: float,
) -> None:
    """20 steps of a layer of 50 inputs against the reference with the parameters of `source`."""
    x, dy = numbers(20, batch, 50), numbers(20, batch, layer.hidden_size, seed=1)
    lengths = np.arange(batch) * 7 % 21 if ragged else None
    y, _, tape = layer.forward(gpu.put(x), None, lengths)
    dx, _, grads = tape.backward(gpu.put(dy))
    oracle = reference.Tape(cell, source.params, x, None, lengths)
    want_dx, _, want_grads = oracle.backward(dy)
    assert want_dx is not None
    agree(gpu, layer, (y, dx, grads), (oracle.y, want_dx, want_grads), tolerance)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(("hidden", "batch"), [(100, 33), (200, 3), (650, 7)])
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_odd_sizes(
    gpu: devices.Cuda, cell: str, hidden: int, batch: int, compute: str | None, ragged: bool
) -> None:
    if cell == "rnn_relu" and compute is not None:
        pytest.skip("a relu that is rounded to the other side of 0 has another derivative")
    source, layer = twins(gpu, compute, cell, 50, hidden, seed=1)
    tolerance = TOLERANCE[compute]
    check_a_step(gpu, cell, source, layer, batch, ragged=ragged, tolerance=tolerance)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(("hidden", "batch", "layers"), [(100, 33, 2), (200, 3, 4), (160, 16, 5)])
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_stacked_layers(
    *,
    gpu: devices.Cuda,
    cell: str,
    hidden: int,
    batch: int,
    layers: int,
    compute: str,
    ragged: bool,
) -> None:
    if cell == "rnn_relu" and compute is not None:
        pytest.skip("a relu that is rounded to the other side of 0 has another derivative")
    source, layer = twins(gpu, compute, cell, 50, hidden, layers, seed=1)
    assert max(layer.plan(20, batch)["layers_per_launch"]) > 1
    # Each layer rounds what it hands on.
    tolerance = TOLERANCE[compute] * (1 if compute is None else layers)
    check_a_step(gpu, cell, source, layer, batch, ragged=ragged, tolerance=tolerance)


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 4}])
@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_the_same_bits_from_run_to_run(
    gpu: devices.Cuda, cell: str, compute: str | None, options: dict[str, Any]
) -> None:
    _, layer = twins(gpu, compute, cell, 40, 300, **{"num_layers": 2} | options)
    x, lengths = gpu.put(numbers(30, 17, 40)), np.arange(17) * 5 % 31
    first = [gpu.get(array) for array in step(layer, x, lengths)]
    for _ in range(5):
        for got, want in zip(step(layer, x, lengths), first, strict=True):
            assert_same_bits("again", gpu.get(got), want)


def test_torch_is_not_copied(gpu: devices.Cuda) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    layer = rk.LSTM(5, 8, device="cuda", seed=0)
    x = torch.from_numpy(numbers(6, 3, 5)).cuda()
    taken: Any = gpu.array("x", x)
    assert taken.data.ptr == x.data_ptr()
    y: Any = layer(x)[0]
    assert torch.from_dlpack(y).data_ptr() == y.data.ptr
    assert_close("y", gpu.get(y), rk.LSTM(5, 8, seed=0)(numbers(6, 3, 5))[0], 1e-5)
    with pytest.raises(TypeError, match="x must be on the GPU"):
        layer(x.cpu())
    with pytest.raises(TypeError, match="x must be in host memory"):
        rk.LSTM(5, 8)(x)


def test_the_memory_of_a_tensor_is_kept(gpu: devices.Cuda, spin: Any) -> None:
    """Its owner lets go of it while the work that reads it waits, and takes the memory anew."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    layer = rk.LSTM(64, 64, device="cuda", seed=0)
    host = numbers(64, 16, 64)
    want = gpu.get(layer(gpu.put(host))[0])
    x = torch.from_numpy(host).cuda()
    torch.cuda.synchronize()
    with gpu.xp.cuda.Stream(non_blocking=True) as stream:
        spin()
        y = layer(x)[0]
        del x
        others = [torch.full((64, 16, 64), float("nan"), device="cuda") for _ in range(8)]
        stream.synchronize()
    assert_same_bits("y", gpu.get(y), want)
    assert len(others) == 8


def test_the_array_interface_is_not_copied(gpu: devices.Cuda) -> None:
    x: Any = gpu.put(numbers(6, 3, 5))
    only = SimpleNamespace(__cuda_array_interface__=x.__cuda_array_interface__)
    taken: Any = gpu.array("x", only)
    assert taken.data.ptr == x.data.ptr


def test_work_is_queued_on_the_current_stream(gpu: devices.Cuda, spin: Any) -> None:
    layer = rk.GRU(5, 64, 2, bidirectional=True, device="cuda", seed=0)
    later = gpu.put(numbers(20, 3, 5))
    x = gpu.xp.zeros_like(later)
    want = [gpu.get(array) for array in step(layer, later)]
    gpu.xp.cuda.Device().synchronize()
    with gpu.xp.cuda.Stream(non_blocking=True) as stream:
        spin()
        x[...] = later  # too late for any work that does not wait for this stream
        got = step(layer, x)
        stream.synchronize()
    for a, b in zip(got, want, strict=True):
        assert_same_bits("on a stream", gpu.get(a), b)


def test_nothing_waits(gpu: devices.Cuda, spin: Any) -> None:
    layer = rk.LSTM(5, 64, 2, bidirectional=True, dropout=0.3, device="cuda")
    head = rk.Linear(128, 4, device="cuda")
    optimizer = rk.Adam(layer.params)
    x, targets = gpu.put(numbers(20, 8, 5)), gpu.put(np.zeros((20, 8), np.int64))
    lengths = np.arange(8) * 2

    def train() -> None:
        y, _, tape = layer.forward(x, None, lengths, dropout_key=1)
        logits, head_tape = head.forward(y)
        _, dlogits = rk.softmax_cross_entropy(logits, targets, targets == 0)
        dy, _ = head_tape.backward(dlogits)
        _, _, grads = tape.backward(dy)
        rk.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)

    with gpu.xp.cuda.Stream(non_blocking=True) as stream:
        train()  # CuPy compiles, and its pool grows
        stream.synchronize()
        spin()
        train()
        assert not stream.done
        stream.synchronize()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_graphs(gpu: devices.Cuda, bidirectional: bool) -> None:
    layer = rk.LSTM(5, 64, 2, bidirectional=bidirectional, device="cuda", seed=0)
    x = gpu.put(numbers(20, 8, 5))
    lengths = np.arange(8) * 2
    # A pool of its own: what the graph writes to must not be given to anyone else.
    pool = gpu.xp.cuda.MemoryPool()
    with gpu.xp.cuda.using_allocator(pool.malloc), gpu.xp.cuda.Stream(non_blocking=True) as stream:
        step(layer, x, lengths)
        stream.synchronize()
        stream.begin_capture()
        captured = step(layer, x, lengths)
        graph = stream.end_capture()
    for seed in (1, 2):
        x[...] = gpu.put(numbers(20, 8, 5, seed=seed))
        gpu.xp.cuda.Device().synchronize()
        graph.launch(stream)
        stream.synchronize()
        for got, want in zip(captured, step(layer, x, lengths), strict=True):
            assert_same_bits("replayed", gpu.get(got), gpu.get(want))


def test_a_graph_of_launches_that_need_different_shared_memory(gpu: devices.Cuda) -> None:
    layer = rk.LSTM(300, 300, 5, device="cuda", seed=0)
    assert len(set(layer.plan(16, 17)["layers_per_launch"])) > 1
    x, pool = gpu.put(numbers(16, 17, 300)), gpu.xp.cuda.MemoryPool()
    with gpu.xp.cuda.using_allocator(pool.malloc), gpu.xp.cuda.Stream(non_blocking=True) as stream:
        want = gpu.get(layer(x)[0])
        stream.begin_capture()
        y = layer(x)[0]
        graph = stream.end_capture()
        layer(x[:, :5])  # another plan of the same kernel, between capture and launch
        graph.launch(stream)
        stream.synchronize()
    assert_same_bits("y", gpu.get(y), want)


@pytest.mark.usefixtures("gpu")
def test_the_first_call_of_a_kernel_in_a_capture() -> None:
    """It is loaded then. CuPy's own kernels and its pool's memory are there before."""
    done = run_python(
        """
        import numpy as np, cupy as cp, rnnkern as rk
        layer, want = rk.LSTM(64, 64, device="cuda", seed=0), rk.LSTM(64, 64, seed=0)
        host = np.ones((8, 5, 64), np.float32)
        x, pool = cp.asarray(host), cp.cuda.MemoryPool()
        with cp.cuda.using_allocator(pool.malloc), cp.cuda.Stream(non_blocking=True) as stream:
            rk.GRU(64, 64, device="cuda", seed=0)(x)
            room = [cp.empty(1 << 24, np.uint8) for _ in range(8)]
            del room
            stream.synchronize()
            stream.begin_capture()
            y = layer(x)[0]
            graph = stream.end_capture()
            graph.launch(stream)
            stream.synchronize()
        np.testing.assert_allclose(cp.asnumpy(y), want(host)[0], rtol=1e-4, atol=1e-5)
        """.replace("\n        ", "\n")
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("batches", [(16, 16), (16, 128), (1, 64)])
def test_two_grids_at_once(gpu: devices.Cuda, batches: tuple[int, int]) -> None:
    """Their blocks wait for each other, and two threads launch them: none is ever half there."""
    failures: list[BaseException] = []

    def work(batch: int) -> None:
        try:
            with gpu.xp.cuda.Stream(non_blocking=True) as stream:
                layer = rk.LSTM(512, 512, compute="float16", device="cuda", seed=0)
                x = gpu.put(numbers(64, batch, 512))
                first = [gpu.get(array) for array in step(layer, x)]
                for _ in range(20):
                    last = step(layer, x)
                stream.synchronize()
                for got, want in zip(last, first, strict=True):
                    assert_same_bits("again", gpu.get(got), want)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_the_current_device_is_used(gpu: devices.Cuda) -> None:
    count = gpu.xp.cuda.runtime.getDeviceCount()
    if count < 2:
        pytest.skip("there is one GPU")
    x = numbers(8, 5, 64)
    want = rk.LSTM(64, 64, seed=0)(x)[0]
    for number in (1, 0, 1):
        with gpu.xp.cuda.Device(number):
            layer = rk.LSTM(64, 64, device="cuda", seed=0)
            y = layer(gpu.put(x))[0]
            assert y.device.id == number  # type: ignore[attr-defined]
            assert_close("y", gpu.get(y), want, 1e-5)


def test_the_adder_learns_as_well(gpu: devices.Cuda) -> None:
    settings = Settings(digits=2, hidden=64, steps=1500, batch=128)
    right = []
    for name in ("cpu", "cuda"):
        training = Training(Adder(settings, device=name))
        while training.fraction < 1.0:
            training.advance()
        right.append(training.adder.evaluate(*training.adder.pairs.held_out(5000)).right)
    assert right[0] > 4500
    assert right[1] > right[0] - 250

"""What a GPU alone can show: no copies, streams, no waiting, graphs, the same bits, real sizes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import device
from rnnkern.adder import Adder, Settings, Training

import reference
from conftest import CELLS, assert_close, assert_same_bits, make
from reference import Array

pytestmark = pytest.mark.gpu

COMPUTES = ["tfloat32", "bfloat16", "float16", None]
# Norm-wise against float64, on 20 steps: the operands are rounded to 11, 8 and 11 bits.
TOLERANCE = {"tfloat32": 4e-3, "bfloat16": 4e-2, "float16": 4e-3, None: 1e-5}


@pytest.fixture
def gpu() -> device.Cuda:
    """The device, or a skip that says why there is none."""
    try:
        found = device.get_device("cuda")
    except ValueError as error:
        pytest.skip(str(error))
    assert isinstance(found, device.Cuda)
    return found


@pytest.fixture
def poison(gpu: device.Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is NaN, so that what is read before it is written shows."""
    real = gpu.xp.empty

    def empty(*args: Any, **options: Any) -> Any:
        array = real(*args, **options)
        array.view(np.uint8).fill(255)
        return array

    monkeypatch.setattr(gpu.xp, "empty", empty)


@pytest.fixture
def spin(gpu: device.Cuda) -> Iterator[Any]:
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


def twins(gpu: device.Cuda, compute: str | None, *cell_and_sizes: Any, **options: Any) -> Any:
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


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(("hidden", "batch"), [(100, 33), (200, 3), (650, 7)])
@pytest.mark.parametrize("cell", CELLS)
def test_odd_sizes(
    gpu: device.Cuda, cell: str, hidden: int, batch: int, compute: str | None, ragged: bool
) -> None:
    if cell == "rnn_relu" and compute is not None:
        pytest.skip("a relu that is rounded to the other side of 0 has another derivative")
    source, layer = twins(gpu, compute, cell, 50, hidden, seed=1)
    x, dy = numbers(20, batch, 50), numbers(20, batch, hidden, seed=1)
    lengths = np.arange(batch) * 7 % 21 if ragged else None
    y, _, tape = layer.forward(gpu.put(x), None, lengths)
    dx, _, grads = tape.backward(gpu.put(dy))
    oracle = reference.Tape(cell, source.params, x, None, lengths)
    want_dx, _, want_grads = oracle.backward(dy)
    assert want_dx is not None
    assert_close("y", gpu.get(y), oracle.y, TOLERANCE[compute])
    assert_close("dx", gpu.get(dx), want_dx, TOLERANCE[compute])
    for name, want in want_grads.items():
        assert_close(name, gpu.get(grads[name]), want, TOLERANCE[compute])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(("hidden", "batch", "layers"), [(100, 33, 2), (200, 3, 4), (160, 16, 5)])
@pytest.mark.parametrize("cell", CELLS)
def test_stacked_layers(
    *, gpu: device.Cuda, cell: str, hidden: int, batch: int, layers: int, compute: str, ragged: bool
) -> None:
    if cell == "rnn_relu" and compute is not None:
        pytest.skip("a relu that is rounded to the other side of 0 has another derivative")
    source, layer = twins(gpu, compute, cell, 50, hidden, layers, seed=1)
    assert max(layer.plan(20, batch)["layers_per_launch"]) > 1
    x, dy = numbers(20, batch, 50), numbers(20, batch, hidden, seed=1)
    lengths = np.arange(batch) * 7 % 21 if ragged else None
    y, _, tape = layer.forward(gpu.put(x), None, lengths)
    dx, _, grads = tape.backward(gpu.put(dy))
    oracle = reference.Tape(cell, source.params, x, None, lengths)
    want_dx, _, want_grads = oracle.backward(dy)
    assert want_dx is not None
    # Each layer rounds what it hands on.
    tolerance = TOLERANCE[compute] * (1 if compute is None else layers)
    assert_close("y", gpu.get(y), oracle.y, tolerance)
    assert_close("dx", gpu.get(dx), want_dx, tolerance)
    for name, want in want_grads.items():
        assert_close(name, gpu.get(grads[name]), want, tolerance)


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 4}])
@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_from_run_to_run(
    gpu: device.Cuda, cell: str, compute: str | None, options: dict[str, Any]
) -> None:
    _, layer = twins(gpu, compute, cell, 40, 300, **{"num_layers": 2} | options)
    x, lengths = gpu.put(numbers(30, 17, 40)), np.arange(17) * 5 % 31
    first = [gpu.get(array) for array in step(layer, x, lengths)]
    for _ in range(5):
        for got, want in zip(step(layer, x, lengths), first, strict=True):
            assert_same_bits("again", gpu.get(got), want)


def test_torch_is_not_copied(gpu: device.Cuda) -> None:
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


def test_the_array_interface_is_not_copied(gpu: device.Cuda) -> None:
    x: Any = gpu.put(numbers(6, 3, 5))
    only = SimpleNamespace(__cuda_array_interface__=x.__cuda_array_interface__)
    taken: Any = gpu.array("x", only)
    assert taken.data.ptr == x.data.ptr


def test_work_is_queued_on_the_current_stream(gpu: device.Cuda, spin: Any) -> None:
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


def test_nothing_waits(gpu: device.Cuda, spin: Any) -> None:
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
def test_graphs(gpu: device.Cuda, bidirectional: bool) -> None:
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


def test_the_adder_learns_as_well(gpu: device.Cuda) -> None:
    settings = Settings(digits=2, hidden=64, steps=1500, batch=128)
    right = []
    for name in ("cpu", "cuda"):
        training = Training(Adder(settings, device=name))
        while training.fraction < 1.0:
            training.advance()
        right.append(training.adder.evaluate(*training.adder.pairs.held_out(5000)).right)
    assert right[0] > 4500
    assert right[1] > right[0] - 250

# SPDX-License-Identifier: Apache-2.0
"""Nothing that can be called from Python reads or writes memory that is not the call's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core
from rnnkern.devices import LayerSpec, Weights
from rnnkern.devices.memory import Region

from support.compare import assert_same_bits
from support.emulation import emulated_kernels
from support.layers import CELLS, as_layer_state, as_tuple, make
from support.processes import run_python
from support.reference import Array

STEPS, BATCH, UNITS = 5, 3, 4


def draw(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


# --- What is no array of the right kind -----------------------------------------------------------


SPEC = LayerSpec("lstm", 3, UNITS)


def weights() -> dict[str, Any]:
    return {
        "weight_ih": draw(4 * UNITS, 3),
        "weight_hh": draw(4 * UNITS, UNITS),
        "bias": draw(4 * UNITS),
        "bias_hn": draw(UNITS),
    }


def forward_arguments() -> dict[str, Any]:
    return {
        "x": draw(STEPS, BATCH, 3),
        "h": draw(1, BATCH, UNITS),
        "c": draw(1, BATCH, UNITS),
        "lengths": np.array([5, 0, 2]),
        "y": np.zeros((STEPS, BATCH, UNITS), np.float32),
    }


def forward(x: Any, h: Any, c: Any, lengths: Any, y: Any) -> Any:
    made = _core.Layer(SPEC, [Weights(**weights())])
    return made.forward(_core.Schedule(x, lengths), x, h, c, y, True)


def layer(weight_ih: Any, weight_hh: Any, bias: Any, bias_hn: Any) -> Any:
    return _core.Layer(SPEC, [(weight_ih, weight_hh, bias, bias_hn)])


def backward_arguments() -> dict[str, Any]:
    given = forward_arguments()
    forward(**given)
    return {
        "x": given["x"],
        "y": given["y"],
        "dy": draw(STEPS, BATCH, UNITS),
        "dh": draw(1, BATCH, UNITS),
        "dc": draw(1, BATCH, UNITS),
        "dx": np.zeros_like(given["x"]),
        **{"d" + name: np.zeros_like(array) for name, array in weights().items()},
        "state_gradients": np.zeros((7, 6, UNITS), np.float32),
    }


def backward(
    x: Any, y: Any, dy: Any, dh: Any, dc: Any, dx: Any, state_gradients: Any, **gradients: Any
) -> None:
    kept = forward(**forward_arguments())
    kept.backward(x, y, dy, dh, dc, dx, [tuple(gradients.values())], [state_gradients])


def loss_arguments() -> dict[str, Any]:
    return {
        "logits": draw(6, 3),
        "targets": np.array([0, 1, 2, 2, 1, 0]),
        "mask": np.array([True, False] * 3),
        "weight": 1.0,
        "gradient": np.zeros((6, 3), np.float32),
    }


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], set[str]]] = {
    # name -> function, its arguments, those that are written
    "forward": (forward, forward_arguments, {"h", "c", "y"}),
    "backward": (
        backward,
        backward_arguments,
        {"dh", "dc", "dx", "dweight_ih", "dweight_hh", "dbias", "dbias_hn", "state_gradients"},
    ),
    "Layer": (layer, weights, set()),
    "matmul": (
        _core.matmul,
        lambda: {"a": draw(2, 3), "b": draw(3, 4), "bias": draw(4), "out": draw(2, 4)},
        {"out"},
    ),
    "softmax_cross_entropy": (_core.softmax_cross_entropy, loss_arguments, {"gradient"}),
    "adam": (
        _core.adam,
        lambda: {
            **{name: np.ones(5, np.float32) for name in ("p", "g", "first", "second")},
            **dict.fromkeys(("decay", "first_beta", "second_beta", "epsilon", "rate"), 0.5),
        },
        {"p", "first", "second"},
    ),
    "sum_of_squares": (_core.sum_of_squares, lambda: {"x": draw(5)}, set()),
}


def unaligned(array: Array) -> Array:
    room = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
    room[...] = array.reshape(-1)
    return room.reshape(array.shape)


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


CHANGES: dict[str, Callable[[Array], Any]] = {
    "a list": lambda a: a.tolist(),
    "a memoryview": lambda a: a.data,
    "of another byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "of another dtype": lambda a: a.astype(np.float16),
    "unaligned": unaligned,
    "of another shape": lambda a: a[..., None],
    "empty": lambda a: a[:0],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_converted(call: str, change: str) -> None:
    """A conversion's result would be freed before the kernel reads it, or be written in vain."""
    function, arguments, _ = CALLS[call]
    function(**arguments())
    for name, value in arguments().items():
        if not isinstance(value, np.ndarray) or (value.dtype == bool and change != "a list"):
            continue
        if call in ("adam", "sum_of_squares") and change in ("of another shape", "empty"):
            continue  # they take any shape
        print("with", name)
        with pytest.raises((TypeError, ValueError)):
            function(**{**arguments(), name: CHANGES[change](value)})


@pytest.mark.parametrize("call", [name for name, (*_, written) in CALLS.items() if written])
def test_what_is_read_only_is_not_written(call: str) -> None:
    function, arguments, written = CALLS[call]
    for name in written:
        given = arguments()
        with pytest.raises(ValueError, match=f"{name} must be writable"):
            function(**{**given, name: read_only(given[name])})


def test_a_stepper_keeps_to_arrays() -> None:
    own = list(weights().values())
    h, c = draw(1, BATCH, UNITS), draw(1, BATCH, UNITS)
    _core.Stepper(SPEC, [tuple(own)], h, c)
    for k in range(3):
        given: Any = tuple(
            w.astype(np.float64).tolist() if i == k else w for i, w in enumerate(own)
        )
        with pytest.raises(TypeError, match="must be a NumPy array"):
            _core.Stepper(SPEC, [given], h, c)
    wrong: list[Any] = [[], [()], [tuple(own[:2])], [own]]
    for layers in wrong:
        with pytest.raises(ValueError, match="weights must"):
            _core.Stepper(SPEC, layers, h, c)


def test_a_parameter_that_is_no_array() -> None:
    """This was a use after free: the numbers were those of whatever came to lie there."""
    layer = rk.Linear(4, 300, dtype="float64")
    layer.params["bias"] = [1.0] * 300
    assert np.all(layer(np.zeros((1, 4))) == 1.0)
    bias: Any = [1.0] * 300
    with pytest.raises((TypeError, ValueError), match="bias must be"):
        _core.matmul(np.zeros((1, 4)), np.zeros((4, 300)), bias=bias)


# --- What another thread changes meanwhile --------------------------------------------------------

RACES = {
    "targets": """
        targets, gradient = np.zeros(2000, np.int64), np.zeros((2000, 50), np.float32)
        shared, wild = targets, 2**40
        logits = np.ones((2000, 50), np.float32)
        call = lambda: _core.softmax_cross_entropy(logits, targets, None, 1.0, gradient)
    """,
    "a mask": """
        targets, gradient = np.full(2000, 2**40), np.zeros((2000, 50), np.float32)
        mask = np.zeros(2000, bool)
        shared, wild = mask, True
        logits = np.ones((2000, 50), np.float32)
        call = lambda: _core.softmax_cross_entropy(logits, targets, mask, 1.0, gradient)
    """,
    "a stream's tokens": """
        stream = rk.LSTM(5, 16).stream(2000)
        shared, wild = np.zeros(2000, np.int64), 2**40
        call = lambda: stream.step(shared)
    """,
    "a layer's tokens": """
        layer = rk.LSTM(5, 8)
        shared, wild = np.zeros((100, 20), np.int64), 2**40
        call = lambda: layer.forward(shared)[2].backward()
    """,
    "lengths": """
        layer, x = rk.GRU(5, 8), np.zeros((50, 100, 5), np.float32)
        shared, wild = np.full(100, 50), 2**40
        call = lambda: layer.forward(x, None, shared)[2].backward()
    """,
}


@pytest.mark.parametrize("what", RACES)
def test_indices_may_change_meanwhile(what: str) -> None:
    """A child checks them, releases the GIL, and must not look at them again."""
    lines = [line[8:] for line in RACES[what].splitlines()]
    code = """
import sys, threading, time
import numpy as np, rnnkern as rk
from rnnkern import _core
sys.setswitchinterval(1e-5)
{}
done = threading.Event()
def scribble():
    while not done.is_set():
        shared[...] = wild
        shared[...] = 0
thread = threading.Thread(target=scribble)
thread.start()
calls = refused = 0
end = time.monotonic() + 1.0
while time.monotonic() < end:
    calls += 1
    try:
        call()
    except ValueError:
        refused += 1
done.set()
thread.join()
print("done", calls, refused)
"""
    child = run_python(code.format("\n".join(lines)))
    assert child.returncode == 0, child
    assert child.stdout.startswith("done"), child


# --- Sizes at the border --------------------------------------------------------------------------


def test_objects_that_were_never_built() -> None:
    child = run_python("""
import numpy as np
from rnnkern import _core
from rnnkern.devices import LayerSpec
def refused(call):
    try:
        call()
    except TypeError as error:
        assert "built by its constructor" in str(error), error
    else:
        raise AssertionError
spec = LayerSpec("rnn_tanh", 1, 1)
x, y, h = (np.zeros((1, 1, 1), np.float32) for _ in range(3))
w = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), None, None
layer, schedule = _core.Layer(spec, [w]), _core.Schedule(x, None)
bare = {c: c.__new__(c) for c in (_core.Stepper, _core.Layer, _core.Schedule, _core.Kept)}
refused(lambda: bare[_core.Stepper].step(x[0], None))
refused(lambda: bare[_core.Layer].forward(schedule, x, h, None, y, True))
refused(lambda: bare[_core.Layer].packed())
refused(lambda: layer.forward(bare[_core.Schedule], x, h, None, y, True))
refused(lambda: layer.forward(bare[_core.Layer], x, h, None, y, True))
refused(lambda: bare[_core.Schedule].live)
refused(lambda: bare[_core.Kept].saved)
refused(lambda: bare[_core.Kept].backward(x, y, None, h, None, None, [w]))
""")
    assert child.returncode == 0, child


def test_sizes_of_nothing() -> None:
    child = run_python("""
import numpy as np
from rnnkern import _core
from support.layers import CELLS
from rnnkern.devices import LayerSpec, cell_facts
def refused(call):
    try:
        call()
    except ValueError as error:
        assert "at least" in str(error), error
    else:
        raise AssertionError
zeros = lambda *shape: np.zeros(shape, np.float32)
for cell in CELLS:
    spec = LayerSpec(cell, 3, 2)
    for units, inputs in ((0, 3), (2, 0), (0, 0)):
        rows = len(cell_facts(cell).gates) * units
        w = zeros(rows, inputs), zeros(rows, units), None, None
        refused(lambda: _core.Layer(spec, [w]))
        h = zeros(1, 2, units)
        refused(lambda: _core.Stepper(spec, [w], h, h.copy()))
for shape in ((0, 2, 1), (2, 0, 1), (0, 1), (1, 0)):
    refused(lambda: _core.Schedule(zeros(*shape), None))
w = zeros(1, 1), zeros(1, 1), None, None
refused(lambda: _core.Stepper(LayerSpec("rnn_tanh", 1, 1), [w], zeros(1, 0, 1), None))
""")
    assert child.returncode == 0, child


def test_weights_that_are_given_other_memory() -> None:
    """They are looked at in every call."""
    own = weights()
    made, given = _core.Layer(SPEC, [Weights(**own)]), forward_arguments()
    schedule = _core.Schedule(given["x"], None)
    rest: Any = [given[name] for name in ("x", "h", "c", "y")] + [True]
    made.forward(schedule, *rest)
    own["weight_hh"].resize((1, 1), refcheck=False)
    with pytest.raises(ValueError, match="weight_hh must be a float32 array of shape"):
        made.forward(schedule, *rest)


@pytest.mark.parametrize("argument", ["inputs", "units", "steps", "batch"])
def test_a_plan_of_no_size(argument: str) -> None:
    sizes: dict[str, Any] = dict.fromkeys(("inputs", "units", "steps", "batch"), 1)
    for value in (0, -1):
        given = sizes | {argument: value}
        spec = LayerSpec("lstm", given.pop("inputs"), given.pop("units"))
        with pytest.raises(ValueError, match=f"{argument} must be at least 1, got {value}"):
            _core.plan(spec, **given)


# Within 600 MB of address space above what the modules take.
PLANS = """
import resource, numpy as np, rnnkern as rk
from rnnkern import _core
from rnnkern.devices import LayerSpec
{}
used = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
{}
"""


def test_a_plan_is_arithmetic() -> None:
    child = run_python(
        PLANS.format(
            "",
            """
for sizes in ((10**9, 1), (1, 10**9), (10**9, 10**9)):
    assert rk.LSTM(3, 8).plan(*sizes)["threads"] >= 1
for sizes in ((1, 1, 2**62, 2**62), (2**62, 2**62, 1, 1), (2**63 - 1,) * 4):
    _core.plan(LayerSpec("lstm", *sizes[:2], dtype=np.dtype(np.float64)), *sizes[2:])
""",
        )
    )
    assert child.returncode == 0, child


@pytest.mark.skipif(emulated_kernels() is None, reason="built without the emulation")
def test_a_plan_for_a_gpu_is_arithmetic() -> None:
    child = run_python(
        PLANS.format(
            "from rnnkern import _emulation as gpu",
            """
spec = LayerSpec("lstm", 3, 8)
for steps, batch in ((10**9, 1), (1, 10**9)):
    gpu.plan(spec, steps, batch, True)
    call = gpu.Call(spec, steps, batch, None, tokens=True)
    assert call.forward_workspace > 0 and call.backward_workspace > 0
assert len(gpu.layers_per_launch(LayerSpec("lstm", 3, 8, 10**5), 1, 1, False)) <= 10**5
for sizes in ((2**62, 1, 1, 1), (1, 2**62, 1, 1), (1, 1, 2**62, 1), (1, 1, 1, 2**62),
              (1, 1, 2**33, 2**33)):
    for directions in (1, 2):
        try:
            gpu.plan(LayerSpec("lstm", *sizes[:2], 1, directions), *sizes[2:], True)
        except ValueError as error:
            assert "must be below" in str(error), error
        else:
            raise AssertionError(sizes)
""",
        )
    )
    assert child.returncode == 0, child


def test_strides_at_the_border() -> None:
    given = forward_arguments()

    def strided(name: str, strides: tuple[int, ...]) -> dict[str, Any]:
        array = np.lib.stride_tricks.as_strided(given[name], given[name].shape, strides)
        return {**given, name: array}

    for name, strides in (
        ("x", (2**61, 12, 4)),
        ("y", (48, -(2**61), 4)),
        ("x", (2**63 - 4, 4, 4)),
    ):
        with pytest.raises(ValueError, match=f"{name} must have an extent within memory"):
            forward(**strided(name, strides))
    for strides in ((0, 16, 4), (48, 0, 4)):
        with pytest.raises(ValueError, match="y must have elements of its own"):
            forward(**strided("y", strides))
    forward(**strided("x", (0, 0, 4)))  # read alone


class Facade:
    """An array interface that says what it likes."""

    def __init__(self, **facts: Any) -> None:
        array = np.zeros((2, 2, 3), np.float32)
        self._owner = array
        facts = {**array.__array_interface__, **facts}
        self.__array_interface__ = {k: v for k, v in facts.items() if v is not ...}


@pytest.mark.skipif(emulated_kernels() is None, reason="built without the emulation")
def test_interfaces_of_a_device_that_lie() -> None:
    gpu: Any = emulated_kernels()
    rest = {
        "h": np.zeros((2, 4), np.float32),
        "weight_ih": np.zeros((4, 3), np.float32),
        "weight_hh": np.zeros((4, 4), np.float32),
        "y": np.zeros((2, 2, 4), np.float32),
    }
    room = np.zeros((1 << 16) + 64, np.uint8)
    room = room[-room.ctypes.data % 64 :][: 1 << 16]
    call = gpu.Call(LayerSpec("rnn_tanh", 3, 4), 2, 2, None)
    call.forward([{"x": Facade(), **rest}], room, 0)
    for facts in (
        {"typestr": "f"},
        {"typestr": "<f99999999999999999999"},
        {"typestr": "<f-4"},
        {"typestr": ...},
        {"shape": (2, -2, 3)},
        {"shape": (2**40, 2**40, 3)},
        {"shape": (2, 2, 2**63)},
        {"shape": None},
        {"strides": (4,)},
        {"strides": (2**62, 12, 4)},
        {"strides": "abc"},
        {"data": None},
        {"data": (-1, False)},
        {"data": ()},
    ):
        for name in ("x", "weight_hh", "workspace"):
            passes = {"x": np.zeros((2, 2, 3), np.float32), **rest, name: Facade(**facts)}
            with pytest.raises(ValueError, match=name):
                call.forward([passes], passes.pop("workspace", room), 0)
    y = np.lib.stride_tricks.as_strided(rest["y"], (2, 2, 4), (0, 16, 4))
    with pytest.raises(ValueError, match="y must have elements of its own"):
        call.forward([{"x": Facade(), **rest, "y": y}], room, 0)
    for wrong in ({"reverse": "no"}, {"reverse": 1}):
        with pytest.raises(TypeError, match="reverse must be"):
            call.forward([{"x": Facade(), **rest, **wrong}], room, 0)
    with pytest.raises(TypeError, match="lengths must be integers"):
        gpu.Call(LayerSpec("rnn_tanh", 3, 4), 2, 2, ["a", None])


def test_a_product_over_its_operands() -> None:
    whole = draw(4, 4)
    for a, b in ((whole, draw(4, 4)), (draw(4, 4), whole)):
        with pytest.raises(ValueError, match="out must share no memory with a or b"):
            _core.matmul(a, b, whole)
    room = draw(8, 4)
    assert_same_bits(
        "a @ b", _core.matmul(room[:4], whole, room[4:]), _core.matmul(room[:4], whole)
    )


# --- out= -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_out_over_what_is_read(cell: str, keep: bool) -> None:
    layer = make(cell, UNITS, UNITS)
    run = layer.forward if keep else layer
    x = draw(STEPS, BATCH, UNITS)
    h = draw(1, BATCH, UNITS)
    state = as_layer_state((h, h.copy())[: len(as_tuple(layer(x)[1]))])
    one = draw(1, BATCH, UNITS)
    with pytest.raises(ValueError, match="out must not share memory with state"):
        run(one, state, out=h)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        run(x, state, out=x)
    if isinstance(state, tuple):
        with pytest.raises(ValueError, match="out must not share memory with state"):
            run(one, state, out=state[1])
    for name, p in layer.params.items():
        if p.size >= UNITS:
            out = p.reshape(-1)[:UNITS].reshape(1, 1, UNITS)
            with pytest.raises(ValueError, match=rf"out must not share memory with .*{name}"):
                run(draw(1, 1, UNITS), out=out)
    tokens = np.zeros((2 * UNITS, 1), np.int64)
    out = tokens.reshape(-1).view(np.float32)[: 2 * UNITS * UNITS].reshape(-1, 1, UNITS)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        run(tokens[: len(out)], out=out)


def test_out_over_itself() -> None:
    layer = make("gru_after", 3, UNITS)
    x = draw(STEPS, BATCH, 3)
    room = np.zeros(1000, np.float32)
    for strides in ((0, 16, 4), (48, 0, 4), (16, 16, 4), (48, 12, 4), (40, 16, 4), (4, 48, 4)):
        out = np.lib.stride_tricks.as_strided(room, (STEPS, BATCH, UNITS), strides)
        with pytest.raises(ValueError, match="out must not have two elements in the same memory"):
            layer(x, out=out)
        with pytest.raises(ValueError, match="out must not have two elements in the same memory"):
            layer.stream(BATCH).block(x, out=out)
    with pytest.raises(ValueError, match="out must not have two elements in the same memory"):
        layer.stream(BATCH).step(x[0], out=np.lib.stride_tricks.as_strided(room, (3, 4), (0, 4)))


@pytest.mark.parametrize("keep", [False, True])
def test_views_side_by_side_are_taken(keep: bool) -> None:
    layer = make("lstm", UNITS, UNITS)
    run = layer.forward if keep else layer
    x = draw(STEPS, BATCH, UNITS)
    state = (draw(1, BATCH, UNITS), draw(1, BATCH, UNITS))
    want = layer(x, state)[0]
    whole = np.zeros((2 * STEPS, 2 * BATCH, 2 * UNITS), np.float32)
    for mine, other in (
        (np.s_[::2, :BATCH, :UNITS], np.s_[1::2, :BATCH, :UNITS]),
        (np.s_[:STEPS, ::2, :UNITS], np.s_[:STEPS, 1::2, :UNITS]),
        (np.s_[:STEPS, :BATCH, :UNITS], np.s_[:STEPS, :BATCH, UNITS:]),
        (np.s_[STEPS - 1 :: -1, :BATCH, :UNITS], np.s_[:STEPS, :BATCH, UNITS:]),
    ):
        whole[other] = x
        out = whole[mine]
        assert run(whole[other], state, out=out)[0] is out
        assert_same_bits("y", np.ascontiguousarray(out), want)
        assert_same_bits("x", np.ascontiguousarray(whole[other]), x)
        stream = layer.stream(BATCH)
        stream.state = state
        stream.block(whole[other], out=out)
        assert_same_bits("y of the stream", np.ascontiguousarray(out), want)


def test_whether_memory_overlaps_is_exact() -> None:
    """Against NumPy's own exact answer, on views of one small piece of memory."""
    random = np.random.default_rng(0)
    memory = np.zeros(60, np.int16)

    def region(a: Array) -> Region:
        return Region(a.ctypes.data, a.shape, a.strides, a.itemsize)

    def view() -> Array:
        shape = tuple(int(n) for n in random.integers(0, 4, random.integers(0, 4)))
        strides = [int(s) for s in random.integers(-5, 6, len(shape))]
        span = [(n - 1) * s if n else 0 for n, s in zip(shape, strides, strict=True)]
        low, high = -sum(s for s in span if s < 0), 59 - sum(s for s in span if s > 0)
        begin = int(random.integers(low, high + 1))
        return np.lib.stride_tricks.as_strided(memory[begin:], shape, [2 * s for s in strides])

    seen = set()
    for _ in range(5000):
        a, b = view(), view()
        want = np.shares_memory(a, b)
        assert region(a).overlaps(region(b)) == want, (a.shape, a.strides, b.shape, b.strides)
        places = {
            sum(i * s for i, s in zip(index, a.strides, strict=True))
            for index in itertools.product(*map(range, a.shape))
        }
        own = len(places) == a.size
        assert region(a).has_own_elements() == own, (a.shape, a.strides)
        seen.add((want, own))
    assert len(seen) == 4

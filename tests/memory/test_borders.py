# SPDX-License-Identifier: Apache-2.0
"""Sizes, strides and interfaces at the border of what there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import _core
from rnnkern.devices import LayerSpec, Weights

from support.compare import assert_same_bits
from support.emulation import emulated_kernels
from support.kernel_arguments import SPEC, forward, forward_arguments, weights
from support.layers import draw
from support.needs import emulated_device
from support.processes import run_python


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
bare = {c: c.__new__(c) for c in (_core.Stepper, _core.Network, _core.Kept)}
refused(lambda: bare[_core.Stepper].step(x[0], None))
refused(lambda: bare[_core.Network].forward(x, None, h, None, y, (), True))
refused(lambda: bare[_core.Network].direct(x, None, None, True))
refused(lambda: bare[_core.Network].packed())
refused(lambda: bare[_core.Kept].saved)
refused(lambda: bare[_core.Kept].direct(x, y, None, None, False))
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
        facts = cell_facts(cell)
        rows = len(facts.gates) * units
        of_h = zeros(rows, units) if facts.recurrent_product else None
        own = zeros(facts.unit_weights, units) if facts.unit_weights else None
        w = zeros(rows, inputs), of_h, None, None, own
        refused(lambda: _core.Network(spec, [w]))
        h = zeros(1, 2, units)
        refused(lambda: _core.Stepper(spec, [w], h, h.copy()))
w = zeros(1, 1), zeros(1, 1), None, None
network = _core.Network(LayerSpec("rnn_tanh", 1, 1), [w])
for shape in ((0, 2, 1), (2, 0, 1), (0, 1), (1, 0)):
    h, y = zeros(1, shape[1], 1), zeros(*shape[:2], 1)
    refused(lambda: network.forward(zeros(*shape), None, h, None, y, (), False))
    assert network.direct(zeros(*shape), None, None, False) is None
refused(lambda: _core.Stepper(LayerSpec("rnn_tanh", 1, 1), [w], zeros(1, 0, 1), None))
""")
    assert child.returncode == 0, child


def test_weights_that_are_given_other_memory() -> None:
    """They are looked at in every call."""
    own = weights()
    made, given = _core.Network(SPEC, [Weights(**own)]), forward_arguments()
    made.forward(**given, masks=(), keep=True)
    made.direct(given["x"], None, None, True)
    own["weight_hh"].resize((1, 1), refcheck=False)
    for call in (
        lambda: made.forward(**given, masks=(), keep=True),
        lambda: made.direct(given["x"], None, None, False),
    ):
        with pytest.raises(ValueError, match="weight_hh must be a float32 array of shape"):
            call()


def test_a_batch_is_not_taken_for_one_sequence() -> None:
    child = run_python("""
import numpy as np
from rnnkern import _core
from rnnkern.devices import LayerSpec
w = np.ones((64, 2), np.float32), np.ones((64, 64), np.float32), None, None
network = _core.Network(LayerSpec("rnn_tanh", 2, 64), [w])
x = np.ones((5, 40, 2), np.float32)
y, _, kept = network.direct(x, None, None, True)
try:
    kept.direct(x, y, None, None, True)
except ValueError as error:
    assert "unbatched must be False" in str(error), error
else:
    raise AssertionError
assert kept.direct(x, y, None, None, False) is not None
""")
    assert child.returncode == 0, child


def test_sequences_that_say_another_length_each_time() -> None:
    child = run_python("""
import numpy as np
from rnnkern import _core
from rnnkern.devices import LayerSpec
class Sequence:
    def __init__(self, items, *lengths):
        self.items, self.lengths = items, list(lengths)
    def __len__(self):
        return self.lengths.pop(0) if self.lengths[1:] else self.lengths[0]
    def __getitem__(self, place):
        return self.items[place]
ones = lambda *shape: np.ones(shape, np.float32)
w, spec = (ones(3, 3), ones(3, 3), None, None), LayerSpec("rnn_tanh", 3, 3, layers=3)
x, h = ones(2, 1, 3), ones(3, 1, 3)
for lengths in ((3, 1), (1, 3), (3, 3, 1), (3, 1, 3)):
    network = _core.Network(spec, Sequence([w, w, w], *lengths))
    assert network.direct(x, h, None, False) is not None
    stepper = _core.Stepper(spec, Sequence([w, w, w], *lengths), h.copy(), None, by_token=True)
    assert stepper.step(np.zeros(1, int), None) is not None
for lengths in ((2, 1), (1, 2), (2, 2, 1), (2, 1, 2), (0, 2), (2, 0, 2), (0, 0, 1)):
    masks = Sequence([ones(2, 1, 3)] * 2, *lengths)
    network.forward(x, None, h.copy(), None, x.copy(), masks, True)
""")
    assert child.returncode == 0, child


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


@emulated_device
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


@emulated_device
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

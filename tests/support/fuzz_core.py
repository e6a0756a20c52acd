# SPDX-License-Identifier: Apache-2.0
"""Hostile calls of ``rnnkern._core``: right ones with up to two arguments exchanged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern.devices import LayerSpec

from support.fuzzing import LAYOUTS, Case, finite
from support.reference import Array

CELLS = _core.cells()
STRIDED = LAYOUTS[:5]  # what x, y and their gradients may be

Arguments = dict[str, Any]


class Sizes:
    """The sizes of a call, and arrays of them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.cell = case.one(*CELLS)
        self.gates, self.saved = len(CELLS[self.cell]["gates"]), CELLS[self.cell]["saved"]
        self.states = len(CELLS[self.cell]["states"])
        self.steps, self.batch = case.one(1, 2, 5, 9), case.one(1, 2, 3, 4, 7, 17)
        self.inputs, self.units = case.one(1, 2, 3, 8, 17), case.one(1, 2, 5, 8, 16, 33)
        self.dtype = case.one("float32", "float64")
        self.compute = case.one(None, None, "bfloat16", "int8") if self.dtype == "float32" else None

    def numbers(self, name: str, *shape: int, **how: Any) -> Array:
        """Random ones of the dtype."""
        values = 0.5 * self.case.numbers.standard_normal(shape)
        return self.case.array(name, values.astype(self.dtype), **how)

    def zeros(self, name: str, *shape: int, **how: Any) -> Array:
        """To be written."""
        return self.case.array(name, np.zeros(shape, self.dtype), written=True, **how)

    def weights(self) -> Arguments:
        """As forward, Packed and Stepper take them."""
        case, rows, own = self.case, self.gates * self.units, CELLS[self.cell]["unit_weights"]
        product = CELLS[self.cell]["recurrent_product"]
        of_units = {"unit_weights": self.numbers("unit_weights", own, self.units)} if own else {}
        return {
            "weight_ih": self.numbers("weight_ih", rows, self.inputs),
            "weight_hh": self.numbers("weight_hh", rows, self.units) if product else None,
            "bias": self.numbers("bias", rows) if case.chance(0.7) else None,
            "bias_hn": self.numbers("bias_hn", self.units) if case.chance(0.5) else None,
            **of_units,
            **(self.gains() if CELLS[self.cell]["layer_norm"] else {}),
        }

    def gains(self) -> Arguments:
        """Of a cell that normalises: what stands behind the weights."""
        rows = self.gates * self.units
        of_c = self.states > 1
        return {
            "unit_weights": None,
            "weight_hr": None,
            "gain_ih": self.numbers("gain_ih", rows),
            "gain_hh": self.numbers("gain_hh", rows),
            "gain_c": self.numbers("gain_c", self.units) if of_c else None,
            "shift_c": self.numbers("shift_c", self.units)
            if of_c and self.case.chance(0.7)
            else None,
        }

    def spec(self, **changes: Any) -> Any:
        """What a layer is; now and then with a field exchanged."""
        fields = {
            "cell": self.cell,
            "inputs": self.inputs,
            "units": self.units,
            "layers": 1,
            "directions": 1,
            "reverse": self.case.chance(0.3),
            "merge": "concat",
            "dtype": self.dtype,
            "compute": self.compute,
            **{name: 0.3 for name in ("zoneout", "cell_zoneout") if self.case.chance(0.15)},
            **changes,
        }
        if self.case.chance(0.1):
            fields = mutated(self.case, fields)
        return SimpleNamespace(**fields)

    def x(self) -> Array:
        """Numbers or tokens."""
        if self.case.chance(0.3):
            tokens = self.case.numbers.integers(0, self.inputs, (self.steps, self.batch))
            return self.case.array("x", tokens, layouts=STRIDED)
        return self.numbers("x", self.steps, self.batch, self.inputs, layouts=STRIDED)

    def state(self, name: str, *axes: int, twice: bool = False) -> Array:
        """(…, B, H), or (…, 2·B, H), to be advanced."""
        return self.numbers(name, *axes, self.batch * (1 + twice), self.units, written=True)


def play_network(s: Sizes) -> None:
    """Network(), packed or not, its forward() and, where that was right, backward()."""
    case, directions, layers = s.case, s.case.one(1, 1, 2), s.case.one(1, 1, 2)
    own = [tuple(mutated(case, s.weights()).values()) for _ in range(directions)]
    below, s.inputs = s.inputs, directions * s.units
    above = range((layers - 1) * directions)
    own += [tuple(mutated(case, s.weights()).values()) for _ in above]
    s.inputs = below
    spec = s.spec(directions=directions, layers=layers)
    given = mutated(case, {"spec": spec, "weights": own, "batch_first": case.chance(0.3)})
    network: Any = case.call("Network", lambda: _core.Network(**given))
    if network is not None and case.chance(0.3):
        how = mutated(case, {"with_input": case.chance(0.7)})
        network = case.call("packed", lambda: network.packed(**how))
    if case.chance(0.02):
        network = _core.Network.__new__(_core.Network)
    x, lengths = s.x(), None
    if case.chance(0.4):
        lengths = case.array("lengths", case.numbers.integers(0, s.steps + 1, s.batch))
    if network is None:
        return
    anew = case.chance(0.1)
    forward: Arguments = {
        "x": x,
        "lengths": lengths,
        "h": s.state("h", layers * directions, twice=anew),
        "c": s.state("c", layers * directions, twice=anew),
        "y": s.zeros("y", s.steps, s.batch, directions * s.units, layouts=STRIDED),
        "masks": [
            s.numbers("mask", s.steps, s.batch, directions * s.units) for _ in range(layers - 1)
        ],
        "keep": case.chance(0.5),
    }
    for name in ("resets", "mask"):
        if case.chance(0.2):
            marks = case.numbers.random((s.steps, s.batch)) < case.one(0.1, 0.5, 0.9)
            forward[name] = case.array(name, marks, layouts=STRIDED)
    if anew or case.chance(0.2):
        forward["states_anew"] = anew
    if case.chance(0.2):
        forward["h_factors"] = s.state("h_factors", layers * directions)
    for name in ("zoneout_h", "zoneout_c"):
        if case.chance(0.4):
            forward[name] = [
                case.array(name, case.numbers.random((s.steps, s.batch, s.units)) < 0.3)
                for _ in range(layers * directions)
            ]
    forward = mutated(case, forward)
    kept = case.call("forward", lambda: network.forward(**forward))
    state: Any = case.one(None, s.numbers("h", layers * directions, s.batch, s.units))
    if state is not None and case.chance(0.5):
        state = state, case.one(None, state)
    direct = mutated(case, {"x": x, "state": state, "lengths": lengths, "keep": True})
    taken = case.call("direct", lambda: network.direct(**direct))
    if taken is not None and len(taken) == 3:
        finite("y", taken[0])
        again = mutated(case, {"x": x, "y": taken[0], "dy": taken[0], "dstate": state})
        unbatched = case.chance(0.1)
        case.call("direct", lambda: taken[2].direct(**again, unbatched=unbatched))
    if kept is None:
        return
    finite("y", forward["y"])
    if case.chance(0.02):
        kept = _core.Kept.__new__(_core.Kept)
    gradients = [
        tuple(None if w is None else s.zeros("dw", *np.shape(w)) for w in weights)
        for weights in own
    ]
    backward: Arguments = {
        "x": forward["x"],
        "y": forward["y"],
        "dy": s.numbers("dy", s.steps, s.batch, directions * s.units, layouts=STRIDED),
        "dh": s.state("dh", layers * directions, twice=anew),
        "dc": s.state("dc", layers * directions, twice=anew),
        "dx": None if x.ndim == 2 else s.zeros("dx", s.steps, s.batch, s.inputs, layouts=STRIDED),
        "gradients": gradients,
    }
    backward = mutated(case, backward)

    def run() -> bool:
        kept.backward(**backward)
        return True

    if case.call("backward", run):
        every = [w for own in backward["gradients"] for w in own]
        finite("a gradient", backward["dh"], backward["dx"], *every)


def play_stepper(s: Sizes) -> None:
    """Stepper() and its steps."""
    weights = []
    for layer in range(s.case.one(1, 1, 2)):
        inputs, s.inputs = s.inputs, s.inputs if layer == 0 else s.units
        weights.append(tuple(mutated(s.case, s.weights()).values()))
        s.inputs = inputs
    count = len(weights)
    given = {"h": s.state("h", count), "c": s.state("c", count), "narrow": s.case.chance(0.2)}
    arguments = mutated(s.case, {"spec": s.spec(layers=count), "weights": weights, **given})
    stepper = s.case.call("Stepper", lambda: _core.Stepper(**arguments))
    if s.case.chance(0.05):
        stepper = _core.Stepper.__new__(_core.Stepper)
    if stepper is None:
        return
    for _ in range(3):
        if s.case.chance(0.5):
            x = s.numbers("x", s.batch, s.inputs, layouts=LAYOUTS)
        else:
            x = s.case.array("x", s.case.numbers.integers(-1, s.inputs + 1, s.batch))
        out = s.zeros("out", s.batch, s.units, layouts=LAYOUTS) if s.case.chance(0.5) else None
        step = mutated(s.case, {"x": x, "out": out})
        y = s.case.call("step", partial(stepper.step, **step))
        finite("y of a step", y)


def play_matmul(s: Sizes) -> None:
    """matmul()."""
    given: Arguments
    case, sizes = s.case, (0, 1, 2, 5, 16, 33)
    m, n, k = case.one(*sizes), case.one(*sizes), case.one(*sizes)
    turn = {"transpose_a": case.chance(0.5), "transpose_b": case.chance(0.5)}
    given = {
        "a": s.numbers("a", *((k, m) if turn["transpose_a"] else (m, k))),
        "b": s.numbers("b", *((n, k) if turn["transpose_b"] else (k, n))),
        "bias": s.numbers("bias", n) if case.chance(0.3) else None,
        "out": s.zeros("out", m, n) if case.chance(0.5) else None,
        "accumulate": case.chance(0.3),
        **turn,
    }
    given = mutated(case, given)
    finite("a product", case.call("matmul", lambda: _core.matmul(**given)))


def play_others(s: Sizes) -> None:
    """The small functions."""
    case, rows, classes = s.case, s.batch, s.inputs
    given: Arguments
    which = case.one("loss", "adam", "sum", "tokens", "activation", "plan", "stretches", "names")
    if which == "loss":
        counts = case.array("mask", case.numbers.random(rows) < 0.5)
        given = {
            "logits": s.numbers("logits", rows, classes),
            "targets": case.array("targets", case.numbers.integers(0, classes, rows)),
            "mask": counts if case.chance(0.5) else None,
            "weight": 1.0,
            "gradient": s.zeros("gradient", rows, classes),
        }
        given = mutated(case, given)
        finite("loss", case.call(which, lambda: _core.softmax_cross_entropy(**given)))
    elif which == "adam":
        names = ("p", "first", "second")
        arrays = {name: s.numbers(name, rows, written=True) for name in names}
        arrays["g"] = s.numbers("g", rows)
        factors = dict.fromkeys(("decay", "first_beta", "second_beta", "epsilon", "rate"), 0.9)
        given = mutated(case, {**arrays, **factors})
        case.call(which, lambda: _core.adam(**given))
    elif which == "sum":
        given = mutated(case, {"x": s.numbers("x", *case.one((rows,), (rows, classes), ()))})
        case.call(which, lambda: _core.sum_of_squares(**given))
    elif which == "tokens":
        sums = s.numbers("sums", case.one(1, 3, 40), classes, written=True)
        given = {
            "tokens": case.array("tokens", case.numbers.integers(0, len(sums), rows)),
            "rows": s.numbers("rows", rows, classes),
            "sums": sums,
        }
        given = mutated(case, given)
        case.call(which, lambda: _core.add_by_token(**given))
    elif which == "activation":
        name = case.one("tanh", "sigmoid", "exp_negative")
        given = mutated(case, {"name": name, "x": s.numbers("x", rows)})
        case.call(which, lambda: _core.activation(**given))
    elif which == "plan":
        given = mutated(case, {"spec": s.spec(), "steps": s.steps, "batch": s.batch})
        case.call(which, lambda: _core.plan(**given))
    elif which == "stretches":
        steps = case.numbers.integers(0, s.steps + 1, rows)
        marks = (case.numbers.random((s.steps, rows)) < 0.4 for _ in range(2))
        given = {
            "steps": s.steps,
            "batch": rows,
            "lengths": case.array("lengths", steps) if case.chance(0.5) else None,
            "resets": case.array("resets", next(marks), layouts=STRIDED),
            "mask": case.array("mask", next(marks), layouts=STRIDED) if case.chance(0.5) else None,
            "states_anew": case.chance(0.5),
        }
        given = mutated(case, given)
        case.call(which, lambda: _core.stretches(**given))
    else:
        name = case.one(
            "isa",
            "isa_reason",
            "bfloat16_product",
            "int8_product",
            "supported_isas",
            "thread_limit",
        )
        case.call(name, lambda: getattr(_core, name)())


def play_race(s: Sizes) -> None:
    """Another thread writes what serves as indices, to and fro between right and wild."""
    case = s.case
    rows, wild = 1500, case.one(-1, 2**40, -(2**63), s.inputs)
    shared = np.zeros(rows, np.int64)
    call: Callable[[], Any]
    which = case.one("loss", "mask", "step", "tokens", "lengths")
    if which in ("loss", "mask"):
        logits = np.ones((rows, 30), np.float32)
        gradient = np.zeros_like(logits)
        mask = np.zeros(rows, bool)
        targets = np.full(rows, wild) if which == "mask" else shared
        call = lambda: _core.softmax_cross_entropy(  # noqa: E731
            logits, targets, mask if which == "mask" else None, 1.0, gradient
        )
        shared = mask if which == "mask" else shared
    elif which == "step":
        weights = (np.ones((8, 3), np.float32), np.ones((8, 8), np.float32), None, None)
        state = np.zeros((1, rows, 8), np.float32)
        stepper = _core.Stepper(LayerSpec("rnn_tanh", 3, 8), [weights], state, None)
        call = lambda: stepper.step(shared, None)  # noqa: E731
    else:
        x: Array = np.zeros((20, rows, 1), np.float32)
        w = (np.ones((8, 1), np.float32), np.ones((8, 8), np.float32), None, None)
        h, y = np.zeros((1, rows, 8), np.float32), np.zeros((20, rows, 8), np.float32)
        lengths = shared if which == "lengths" else None
        x = np.broadcast_to(shared, (20, rows)) if which == "tokens" else x
        network = _core.Network(LayerSpec("rnn_tanh", 1, 8), [w])
        call = lambda: network.forward(x, lengths, h, None, y, (), True)  # noqa: E731
    done = threading.Event()

    def scribble() -> None:
        while not done.is_set():
            shared[...] = wild
            shared[...] = 0

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(30):
            case.call(f"{which} that changes to {wild}", call)
    finally:
        done.set()
        thread.join()


def play(case: Case) -> None:
    """One hostile call, or two that belong together."""
    sizes = Sizes(case)
    if case.chance(0.005):
        play_race(sizes)
    else:
        case.one(play_network, play_network, play_stepper, play_matmul, play_others)(sizes)


# --- What an argument may be exchanged for --------------------------------------------------------


def mutated(case: Case, given: Arguments, hostile: Callable[..., Any] | None = None) -> Arguments:
    """The arguments with up to two of them exchanged."""
    for _ in range(case.one(0, 0, 1, 1, 1, 2)):
        name = case.one(*given)
        value = (hostile or exchanged)(case, given[name])
        given = {**given, name: value}
    return given


NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, 0.5, -0.5, 1e300, 1e-320, float("nan"), float("inf"), 1.5, True, False, 1j),
    *(np.int64(3), np.float32(0.5), np.uint8(200), np.bool_(True)),
)
OTHERS: tuple[Any, ...] = (
    *(None, "", "lstm", "LSTM", "lstm\0", "\udc80", b"gru", "float16", [], (), {}, object()),
    *([1.0, 2.0], [[1.0], [2.0, 3.0]], range(3), np.float32, memoryview(b"abcd"), ..., len),
    *(np.float64(1.0), np.zeros(()), np.zeros(0, np.float32), np.array("text"), np.array(None)),
)


class Converts:
    """What becomes an array when asked."""

    def __array__(self, *_: Any, **__: Any) -> Array:
        return np.ones((3, 3), np.float32)


def exchanged(case: Case, value: Any) -> Any:
    """Something that is like the value, or nothing of the kind."""
    if isinstance(value, np.ndarray) and case.chance(0.8):
        return changed(case, value)
    if case.chance(0.1):
        return Converts()
    return case.one(*NUMBERS) if case.chance(0.6) else case.one(*OTHERS)


def changed(case: Case, a: Array) -> Any:
    """An array like it, but for one thing.

    None reaches beyond its memory: pybind11's messages look at the values of all arguments.
    """
    axes = a.ndim
    ways: list[Callable[[], Any]] = [
        lambda: a.tolist(),
        lambda: a.astype(a.dtype.newbyteorder()),
        lambda: a.astype(
            case.one("f2", "f4", "f8", "i4", "i8", "u8", "c8", "O", "?", "S4", "f4,f4")
        ),
        lambda: unaligned(a),
        lambda: a[:0] if axes else a,
        lambda: a[..., None],
        lambda: a.T.copy().T,
        lambda: frozen(a.copy()),
        lambda: np.ma.array(a),
        lambda: a.copy().view(np.recarray),
        lambda: np.repeat(a, 2, axis=case.random.randrange(axes)) if axes else a,
        lambda: a[0] if axes and a.size else a,
        lambda: np.concatenate([a, a], axis=-1) if axes else a,
        lambda: np.broadcast_to(a[:1], a.shape) if axes and a.size else a,
        lambda: np.lib.stride_tricks.as_strided(a, a.shape, [0] * axes),
        lambda: np.zeros((0,) * (axes - 1) + (2**20,), a.dtype) if axes > 1 else a,
        lambda: wild(case, a),
        lambda: wild(case, a),
    ]
    try:
        return case.one(*ways)()
    except (TypeError, ValueError):  # of an array that was exchanged before
        return a


def wild(case: Case, a: Array) -> Any:
    """Other values."""
    copy = a.copy()
    if copy.dtype == bool:
        copy.view(np.uint8)[...] = case.random.randrange(256)
    elif copy.dtype.kind in "iu" and copy.size:
        value = np.int64(case.one(-1, 2**31, 2**62, -(2**63)))
        copy.flat[case.random.randrange(copy.size)] = value.astype(copy.dtype)
    return copy


def unaligned(a: Array) -> Array:
    """The array one byte further."""
    room: Array = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    room[...] = a
    return room


def frozen(a: Array) -> Array:
    """The array, read-only."""
    a.flags.writeable = False
    return a

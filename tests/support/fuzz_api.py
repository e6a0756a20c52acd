# SPDX-License-Identifier: Apache-2.0
"""Hostile calls of what rnnkern exports: right ones with up to two arguments exchanged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern.cells import layer_classes
from rnnkern.layers.configured import state_names

from support.fuzz_core import exchanged
from support.fuzzing import LAYOUTS, Case, finite
from support.reference import Array

# Each class with the options that are its own.
FUNCTIONS = ("tanh", "sigmoid", "relu", "hard_sigmoid", "softsign", "leaky_relu(0.1)", "elu")
OF_GATES: dict[str, tuple[Any, ...]] = {
    "activation": ("tanh", "tanh", *FUNCTIONS),
    "recurrent_activation": ("sigmoid", "sigmoid", *FUNCTIONS),
    "clip": (None, None, 0.3),
}
OWN: dict[Any, dict[str, tuple[Any, ...]]] = {
    rk.RNN: {"nonlinearity": ("tanh", "relu", *FUNCTIONS), "clip": (None, None, 0.3)},
    rk.SimplifiedGRU: OF_GATES,
    rk.MGU: OF_GATES,
    rk.GRU: {"reset": ("before", "after"), **OF_GATES},
    rk.LSTM: {
        "peepholes": (False, False, True),
        "coupled": (False, False, True),
        "cell_zoneout": (0.0, 0.0, 0.5),
        "proj_size": (0, 0, 1, 4),
        "output_activation": (None, None, *FUNCTIONS),
        "cell_clip": (None, None, 0.3),
        **OF_GATES,
    },
}
WITHOUT_PRODUCT = (rk.MinGRU, rk.MinLSTM, rk.IndRNN)
LAYERS = [(cls, OWN.get(cls, {})) for cls in layer_classes().values()]


class Play:
    """A layer and what belongs to calls of it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.cls, own = case.one(*LAYERS)
        options: dict[str, Any] = {
            "input_size": case.one(1, 2, 3, 8),
            "hidden_size": case.one(1, 2, 5, 8, 16),
            "num_layers": case.one(1, 1, 2, 3),
            "bidirectional": case.chance(0.3),
            "batch_first": case.chance(0.3),
            "bias": case.chance(0.8),
            "layer_norm": case.chance(0.3),
            "dropout": case.one(0.0, 0.0, 0.5),
            "recurrent_dropout": case.one(0.0, 0.0, 0.0, 0.5),
            "weight_drop": case.one(0.0, 0.0, 0.0, 0.5),
            "zoneout": case.one(0.0, 0.0, 0.0, 0.5),
            "dtype": case.one("float32", "float64"),
            "seed": 1,
            "recurrent_init": case.one("uniform", "orthogonal"),
            **{name: case.one(*values) for name, values in own.items()},
        }
        if options["num_layers"] == 1:
            options["dropout"] = 0.0
        if options["bidirectional"]:
            options["merge"] = case.one("concat", "concat", "sum", "average", "product")
        options["reverse"] = not options["bidirectional"] and case.chance(0.2)
        if options.get("proj_size", 0) >= options["hidden_size"]:
            options["proj_size"] = 0
        if self.cls in WITHOUT_PRODUCT:
            options["weight_drop"] = options["recurrent_dropout"] = 0.0
            options["layer_norm"] = False
        if options.get("recurrent_activation") in ("relu", "elu", "leaky_relu(0.1)"):
            # Gates without a bound already make h grow fast: scaled further it may overflow.
            options["weight_drop"] = options["recurrent_dropout"] = 0.0
        if options["layer_norm"]:
            options["recurrent_dropout"] = options["zoneout"] = 0.0
            if self.cls is rk.LSTM:
                options["proj_size"], options["peepholes"] = 0, False
                options["cell_zoneout"] = 0.0
        if options["dtype"] == "float32":
            options["compute"] = case.one(None, None, "bfloat16")
        self.options = options
        self.layer: Any = self.cls(**options)
        self.steps, self.batch = case.one(1, 2, 5), case.one(1, 2, 3, 7)
        self.directions = 2 if options["bidirectional"] else 1

    def numbers(self, name: str, *shape: int, **how: Any) -> Array:
        """Random ones of the layer's dtype."""
        values = 0.5 * self.case.numbers.standard_normal(shape)
        values = values.astype(self.options["dtype"])
        return self.case.array(name, values, **{"layouts": LAYOUTS, **how})

    def sequence(self, name: str, features: int, **how: Any) -> Array:
        """Of all steps and rows, in the layer's order of axes."""
        axes = (self.steps, self.batch)
        axes = axes[::-1] if self.options["batch_first"] else axes
        return self.numbers(name, *axes, features, **how)

    def x(self) -> Array:
        """Numbers or tokens."""
        if self.case.chance(0.3):
            axes = (self.steps, self.batch)
            axes = axes[::-1] if self.options["batch_first"] else axes
            tokens = self.case.numbers.integers(0, self.options["input_size"], axes)
            tokens = tokens.astype(self.case.one("i8", "i4", "u1", "u8"))
            return self.case.array("x", tokens, layouts=LAYOUTS)
        return self.sequence("x", self.options["input_size"])

    def state(self, name: str) -> Any:
        """None, or as the layer takes it."""
        if self.case.chance(0.4):
            return None
        count = self.options["num_layers"] * self.directions
        units = self.options["hidden_size"]
        h = self.numbers(f"{name} h", count, self.batch, self.options.get("proj_size") or units)
        if "c" in state_names(self.layer):
            return h, self.numbers(f"{name} c", count, self.batch, units)
        return h

    def features(self) -> int:
        """Of y."""
        return int(self.layer.output_size)

    def arguments(self) -> dict[str, Any]:
        """Of a call of the layer."""
        given: dict[str, Any] = {"x": self.x(), "state": self.state("state")}
        if self.case.chance(0.3):
            lengths = self.case.numbers.integers(0, self.steps + 1, self.batch)
            given["lengths"] = self.case.array("lengths", lengths, layouts=LAYOUTS)
        given.update(self.marks())
        if self.case.chance(0.4):
            given["out"] = self.sequence("out", self.features(), written=True)
            if self.case.chance(0.3):
                given["out"] = self.overlapping(given["out"], given)
                self.case.release()  # what is copied before it is read may be written over
        return given

    def marks(self) -> dict[str, Any]:
        """What a call may say of the steps of its rows."""
        case = self.case
        given: dict[str, Any] = {}
        axes = (self.steps, self.batch)
        axes = axes[::-1] if self.options["batch_first"] else axes
        for name in ("resets", "mask"):
            if case.chance(0.2):
                values = case.numbers.random(axes) < case.one(0.1, 0.5, 0.9)
                given[name] = case.array(name, values, layouts=LAYOUTS)
        if case.chance(0.1):
            ids = case.numbers.integers(0, 3, axes)
            given["segments"] = case.array("segments", ids, layouts=LAYOUTS)
        if case.chance(0.2):
            given["reset_to"] = case.one("zero", "initial")
        if case.chance(0.2):
            given["masked_output"] = case.one("zero", "last")
        return given

    def overlapping(self, out: Array, given: dict[str, Any]) -> Array:
        """As `out`, somewhere over what the call reads, or over itself."""
        state = given["state"]
        over = [given["x"], *(state if isinstance(state, tuple) else [state]), out]
        over += list(self.layer.params.values())
        target = self.case.one(*[a for a in over if isinstance(a, np.ndarray)])
        flat = np.lib.stride_tricks.as_strided(target, (1,), (target.itemsize,))
        strides = self.case.one(out.strides, (0,) * out.ndim, (0,) * (out.ndim - 1) + (8,))
        if max(abs(s) for s in strides) > 8 or target.nbytes < out.nbytes:
            strides = (0,) * out.ndim
        if flat.dtype != out.dtype:
            return out
        return np.lib.stride_tricks.as_strided(flat, out.shape, strides)


def swapped(case: Case, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with up to two of them exchanged; of a pair one part or both."""
    for _ in range(case.one(0, 0, 1, 1, 1, 2)):
        name = case.one(*given)
        value = given[name]
        if isinstance(value, tuple) and value and case.chance(0.7):
            parts = list(value)
            index = case.random.randrange(len(parts))
            parts[index] = exchanged(case, parts[index])
            given = {**given, name: case.one(tuple(parts), parts, tuple(parts[:1]))}
        else:
            given = {**given, name: exchanged(case, value)}
    return given


def arrays_of(value: Any) -> list[Array]:
    """All in a result."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [array for part in value for array in arrays_of(part)]


def play_construction(play: Play) -> None:
    """A layer, with arguments exchanged, and a call of what that gave."""
    case = play.case
    options = swapped(case, play.options)
    layer = case.call(f"{play.cls.__name__}({options})", lambda: play.cls(**options))
    if layer is not None and layer.hidden_size <= 64 and layer.num_layers <= 8:
        case.call(f"a call of {layer}", lambda: layer(np.zeros((2, 1, layer.input_size))))


def play_call(play: Play) -> None:
    """A call, plain, frozen or with a backward pass."""
    case, layer = play.case, play.layer
    if case.chance(0.1):
        name = case.one(*layer.params)
        value = exchanged(case, layer.params[name])

        def assign() -> None:
            layer.params[name] = value
            layer(np.zeros((1, 1, layer.input_size), layer.dtype))

        case.call(f"{layer}, params[{name}] assigned", guarded(assign))
        layer = play.layer = play.cls(**play.options)
    run: Any = layer
    if case.chance(0.3):
        weights = case.one(None, None, "int8")
        run = case.call(f"{layer}.freeze", lambda: layer.freeze(weights=weights))
        if run is None:
            return
    given = swapped(case, play.arguments())
    keep = run is layer and case.chance(0.5)
    if keep:
        given.setdefault("dropout_key", 3 if case.chance(0.8) else exchanged(case, 3))
        if case.chance(0.2):
            given[case.one("tbptt", "recompute")] = case.one(1, 2, 9)
    text = f"{layer}{'.forward' if keep else ''}, {sorted(given)}"
    result = case.call(text, lambda: (layer.forward if keep else run)(**given))
    if result is None:
        return
    results(given, *result[:2])
    if not keep:
        return
    tape = result[2]
    case.call("gates", tape.gates)
    back = {
        "dy": play.sequence("dy", play.features()) if case.chance(0.8) else None,
        "dstate": play.state("dstate"),
        "state_gradients": case.chance(0.2),
    }
    back = swapped(case, back)
    gradients = case.call("backward", lambda: tape.backward(**back))
    if gradients is not None:
        results({**given, **back}, *gradients[:3])


def guarded(function: Callable[[], None]) -> Callable[[], bool]:
    """The function as one that gives True, and refuses unknown names as it refuses values."""

    def run() -> bool:
        try:
            function()
        except (KeyError, AttributeError) as error:
            raise ValueError(str(error)) from error
        return True

    return run


def results(given: dict[str, Any], *values: Any) -> None:
    """Finite where the arguments were; those may still be exchanged ones of large numbers."""
    numbers = [a for a in arrays_of(list(given.values())) if a.dtype.kind == "f"]
    if all(np.all(np.abs(a) < 1e3) for a in numbers):
        finite("a result", *arrays_of(values))


def play_stream(play: Play) -> None:
    """Steps, blocks and the state of a stream."""
    case, layer = play.case, play.layer
    given = swapped(case, {"batch": play.batch, "weights": case.one(None, "bfloat16", "int8")})
    if isinstance(given["batch"], int) and given["batch"] > 2**20:
        return
    stream = case.call(f"{layer}.stream", lambda: layer.stream(**given))
    if stream is None or stream.batch > 99:
        return
    hidden, inputs = play.features(), play.options["input_size"]
    for _ in range(4):
        what = case.one("step", "step", "block", "state", "reset", "rows")
        batch = stream.batch
        if what == "step":
            x: Any = play.numbers("x", batch, inputs)
            if case.chance(0.3):
                x = case.array("x", case.numbers.integers(-1, inputs + 1, batch))
            step = {"x": x}
            if case.chance(0.5):
                step["out"] = play.numbers("out", batch, hidden, written=True)
            if case.chance(0.4):
                step["mask"] = case.array("mask", case.numbers.random(batch) < 0.5)
            step = swapped(case, step)
            case.call("step", partial(stream.step, **step))
        elif what == "block":
            block = {"x": play.numbers("x", play.steps, batch, inputs)}
            if case.chance(0.5):
                shape = (play.steps, batch, hidden)
                block["out"] = play.numbers("out", *shape, written=True)
            block = swapped(case, block)
            case.call("block", partial(stream.block, **block))
        elif what == "reset":
            mask = exchanged(case, case.one(np.ones(batch, bool), np.arange(batch)[:2]))
            case.call("reset", partial(stream.reset, mask))
        elif what == "rows":
            play_rows(case, stream)
        else:
            state = swapped(case, {"state": stream.state})["state"]
            case.call("state", guarded(partial(setattr, stream, "state", state)))
        finite("the state", *(a for a in arrays_of(stream.state) if np.all(np.abs(a) < 1e3)))


def play_rows(case: Case, stream: Any) -> None:
    """Rows of a stream are read and set, come and go."""
    some = case.array("rows", case.numbers.permutation(stream.batch)[:2])
    state = stream.get_rows(some)
    what = case.one("get_rows", "set_rows", "add_rows", "remove_rows", "refresh")
    given: dict[str, Any] = {
        "get_rows": {"rows": some},
        "set_rows": {"rows": some, "state": state},
        "add_rows": {"count": len(some), "state": case.one(None, state)},
        "remove_rows": {"rows": some},
        "refresh": {},
    }[what]
    given = swapped(case, given) if given else given
    if isinstance(given.get("count"), int) and given["count"] > 99:
        return
    case.call(what, partial(getattr(stream, what), **given))


def play_linear(play: Play) -> None:
    """Linear, forward and back."""
    case = play.case
    options: dict[str, Any] = {
        "in_features": 3,
        "out_features": case.one(1, 5),
        "bias": case.chance(0.7),
    }
    options = swapped(case, {**options, "dtype": play.options["dtype"], "seed": 0})
    layer = case.call(f"Linear({options})", lambda: rk.Linear(**options))
    if layer is None or layer.in_features > 99 or layer.out_features > 99:
        return
    if case.chance(0.2):
        name = case.one(*layer.params)

        value, before = exchanged(case, layer.params[name]), dict(layer.params)
        linear = layer

        def assign() -> None:
            linear.params[name] = value
            linear(np.zeros((1, linear.in_features), linear.dtype))

        case.call("params assigned", guarded(assign))
        layer.params.update(before)
    shape = (*case.one((), (2,), (2, 3), (0,)), layer.in_features)
    given = swapped(case, {"x": play.numbers("x", *shape)})
    out = case.array("out", np.zeros((*shape[:-1], layer.out_features), layer.dtype), written=True)
    called: Any = layer.freeze() if case.chance(0.5) else layer
    case.call("Linear", partial(called, **swapped(case, {**given, "out": out})))
    result = case.call("Linear.forward", lambda: layer.forward(**given))
    if result is not None:
        dy = swapped(case, {"dy": play.numbers("dy", *result[0].shape)})
        case.call("LinearTape.backward", lambda: result[1].backward(**dy))


def play_training(play: Play) -> None:
    """The loss, clipping and the optimizers."""
    case = play.case
    what = case.one("loss", "clip", "optimizer")
    if what == "loss":
        shape = case.one((4,), (2, 3), (0,), ())
        classes = case.one(1, 2, 7)
        targets = case.numbers.integers(0, classes, shape)
        given: dict[str, Any] = {
            "logits": play.numbers("logits", *shape, classes),
            "targets": case.array("targets", targets, layouts=LAYOUTS),
            "mask": case.one(None, case.array("mask", case.numbers.random(shape) < 0.5)),
        }
        given = swapped(case, given)
        result = case.call(what, lambda: rk.softmax_cross_entropy(**given))
        if result is not None:
            results(given, result)
        return
    params = {name: play.numbers(name, 3, 2, written=True, layouts=("plain",)) for name in "ab"}
    grads = {name: play.numbers(f"d{name}", 3, 2, written=what == "clip") for name in "ab"}
    if what == "clip":
        limit = swapped(case, {"limit": 1.0})["limit"]
        function: Any = case.one(rk.clip_grad_norm, rk.clip_grad_value)
        changed = swapped(case, grads)
        case.call(function.__name__, guarded(lambda: function(changed, limit)))
        return
    cls: Any = case.one(rk.Adam, rk.SGD)
    options = {"lr": 0.01, "weight_decay": case.one(0.0, 0.1)}
    options = swapped(case, options)
    optimizer = case.call(f"{cls.__name__}({options})", lambda: cls(params, **options))
    if optimizer is not None:
        changed = swapped(case, grads)
        for _ in range(2):
            case.call("step", guarded(lambda: optimizer.step(changed)))


def play_seq2seq(play: Play) -> None:
    """A small model of two layers, trained and asked."""
    case = play.case
    options: dict[str, Any] = {
        "cell": case.one(*layer_classes()),
        "bidirectional": case.chance(0.3),
        "dtype": play.options["dtype"],
        "bos": 0,
        "eos": case.one(0, 5),
        "seed": 0,
    }
    options = swapped(case, options)
    model = case.call(f"Seq2Seq({options})", lambda: rk.Seq2Seq(5, 6, 8, **options))
    if model is None:
        return
    source = case.array("source", case.numbers.integers(0, 5, (3, 2)), layouts=LAYOUTS)
    target = case.array("target", case.numbers.integers(0, 6, (4, 2)), layouts=LAYOUTS)
    lengths = case.array("source_lengths", case.numbers.integers(1, 4, 2))
    asked = {"source": source, "source_lengths": case.one(None, lengths), "max_length": 4}
    for name, more in (("greedy", {}), ("beam", {"width": case.one(1, 2, 7, 100)})):
        given = swapped(case, {**asked, **more})
        if all(not isinstance(n, int) or n < 1000 for n in given.values()):  # a beam may be as long
            case.call(name, partial(getattr(model, name), **given))
    given = {"target": target, "target_lengths": None}
    given = swapped(case, {"source": source, "source_lengths": lengths, **given})
    result = case.call("Seq2Seq.forward", partial(model.forward, **given))
    if result is not None:
        logits = play.numbers("dlogits", *result[0].shape)
        dlogits = swapped(case, {"dlogits": logits})["dlogits"]
        case.call("Seq2SeqTape.backward", partial(result[1].backward, dlogits))


def play_plan(play: Play) -> None:
    """plan()."""
    case, layer = play.case, play.layer
    given = swapped(case, {"steps": play.steps, "batch": play.batch, "training": True})
    case.call(f"{layer}.plan({given})", lambda: layer.plan(**given))


def play(case: Case) -> None:
    """One hostile call, or a few that belong together."""
    parts = [play_call] * 6 + [play_stream] * 3 + [play_construction, play_linear, play_training]
    parts += [play_plan, play_seq2seq]
    case.one(*parts)(Play(case))

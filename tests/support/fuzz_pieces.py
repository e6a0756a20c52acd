# SPDX-License-Identifier: Apache-2.0
"""Hostile calls of what stands around the layers: stacks, single steps, embeddings, losses."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern.cells import CELLS

from support.fuzz_api import Play, guarded, results, swapped
from support.fuzz_core import exchanged
from support.fuzzing import LAYOUTS, Case


def play_piece(play: Play) -> None:
    """Embedding, dropout or normalization, forward and back."""
    case, kind = play.case, play.case.one("Embedding", "Dropout", "LayerNorm")
    options: dict[str, Any] = {"dtype": play.options["dtype"]}
    if kind == "Embedding":
        options |= {"tokens": 5, "features": case.one(1, 4), "seed": 1}
    elif kind == "LayerNorm":
        options |= {"features": case.one(1, 4), "eps": 1e-5, "bias": case.chance(0.5)}
    else:
        options = {"share": case.one(0.0, 0.5)}
    options = swapped(case, options)
    if any(isinstance(n, int) and n > 99 for n in options.values()):  # as many numbers are wanted
        return
    piece: Any = case.call(f"{kind}({options})", lambda: getattr(rk, kind)(**options))
    if piece is None:
        return
    shape = case.one((), (3,), (2, 3), (0,))
    if kind == "Embedding":
        tokens = case.numbers.integers(0, 5, shape).astype(case.one("i8", "i4", "u1", "u8"))
        given: dict[str, Any] = {"x": case.array("x", tokens, layouts=LAYOUTS)}
    else:
        given = {"x": play.numbers("x", *shape, getattr(piece, "features", 3))}
    if kind == "Dropout":
        given["dropout_key"] = case.one(None, 3)
    given = swapped(case, given)
    result = case.call(f"{kind}.forward", partial(piece.forward, **given))
    if result is None:
        return
    results(given, result[0])
    dy = swapped(case, {"dy": play.numbers("dy", *result[0].shape)})
    gradients = case.call(f"{kind}Tape.backward", partial(result[1].backward, **dy))
    if gradients is not None:
        results({**given, **dy}, gradients.x, *gradients.params.values())


def play_step(play: Play) -> None:
    """A cell of one step, forward and back."""
    case, entry = play.case, play.case.one(*CELLS.values())
    cell: Any = entry.step(3, 4, dtype=play.options["dtype"], seed=1, **entry.options)
    batch = case.one((2,), (), (0,))

    def state(name: str) -> Any:
        parts = tuple(play.numbers(f"{name} {k}", *batch, 4) for k in "hc")
        return case.one(None, parts if isinstance(cell(np.zeros((1,), int)), tuple) else parts[0])

    x: Any = play.numbers("x", *batch, 3)
    if case.chance(0.3):
        x = case.array("x", case.numbers.integers(0, 3, batch), layouts=LAYOUTS)
    given = swapped(case, {"x": x, "state": state("state")})
    result = case.call(f"{cell}.forward", partial(cell.forward, **given))
    if result is None:
        return
    results(given, result[0])
    into: Any = case.one(None, {name: np.zeros_like(p) for name, p in cell.params.items()})
    back = swapped(case, {"dstate": state("dstate"), "into": into})
    case.call("CellTape.backward", guarded(lambda: result[1].backward(**back)))


def play_stack(play: Play) -> None:
    """The layer with another one on it: calls, tapes, streams."""
    case, options = play.case, play.options
    top = rk.LSTM(
        play.features(),
        case.one(play.features(), 5),
        batch_first=options["batch_first"],
        dtype=options["dtype"],
        seed=2,
    )
    made = swapped(case, {"residual": case.one(False, True, [False, True]), "dropout": 0.5})
    stack = case.call(f"Stack of {top}, {made}", lambda: rk.Stack([play.layer, top], **made))
    if stack is None:
        return
    play.options = {**options, "hidden_size": top.hidden_size, "proj_size": 0}
    play.directions = 1
    given = play.arguments()
    given["state"] = case.one(None, (None, None), [None, given["state"]])
    given.pop("out", None)
    given["x"] = play.x() if case.chance(0.1) else given["x"]
    given = swapped(case, {**given, "dropout_key": 3})
    result = case.call(f"{stack}.forward", partial(stack.forward, **given))
    if result is None:
        return
    results(given, result[0])
    back: dict[str, Any] = {
        "dy": play.sequence("dy", stack.output_size) if case.chance(0.7) else None,
        "dlast": play.numbers("dlast", play.batch, stack.output_size),
        "dstate": case.one(None, (None, None)),
    }
    back = swapped(case, back)
    gradients = case.call("StackTape.backward", partial(result[2].backward, **back))
    if gradients is not None:
        results({**given, **back}, gradients.x, *gradients.params.values())
    if options["bidirectional"] or options["reverse"]:
        return
    stream = stack.stream(2)
    x = play.numbers("step", 2, stack.input_size)
    step = swapped(case, {"x": x, "out": None, "mask": case.one(None, np.array([True, False]))})
    case.call("StackStream.step", partial(stream.step, **step))
    name = case.one("set_rows", "reset", "get_rows")
    rows = exchanged(case, np.array([1, 0])) if case.chance(0.5) else np.array([1, 0])
    more = (None,) if name == "set_rows" else ()
    case.call(name, guarded(lambda: getattr(stream, name)(rows, *more)))


def play_model(play: Play) -> None:
    """A model asked about arrays and lists; a stream of it; what it writes."""
    case, dtype, tokens = play.case, play.options["dtype"], play.case.chance(0.5)
    readout, batch_first = case.one("all", "last", "mean", "max"), case.chance(0.3)
    model = rk.Model(
        rk.GRU(4, 5, batch_first=batch_first, dtype=dtype, seed=0),
        rk.Linear(5, case.one(1, 4), dtype=dtype, seed=1),
        embedding=rk.Embedding(6, 4, dtype=dtype, seed=2) if tokens else None,
        readout=readout,
    )

    def sequence(steps: int, *rows: int) -> Any:
        if tokens:
            drawn = case.numbers.integers(0, 6, (steps, *rows))
            return case.array("x", drawn.astype(case.one("i8", "i4", "u1", "u8")), layouts=LAYOUTS)
        return play.numbers("x", steps, *rows, 4)

    x: Any = case.one(sequence(3, 2), sequence(3))
    if case.chance(0.5):
        x = [sequence(n) for n in (2, 0, 3)]
        if case.chance(0.3):
            x[case.random.randrange(3)] = exchanged(case, x[0])
    given = {"x": x, "lengths": case.one(None, [1, 3]), "batch_first": case.one(None, True, False)}
    given = swapped(case, given)
    found = case.call(f"{model}.predict", partial(model.predict, **given))
    if found is not None:
        results(given, *(found if isinstance(found, list) else [found]))
    prompt = case.one([1, 2], [[1], [2, 3]], sequence(2, 2))
    written: dict[str, Any] = {"prompt": prompt, "max_length": 4, "temperature": 1.0, "top_k": None}
    written = swapped(case, {**written, "stop": case.one(None, 0), "seed": 1})
    most = written["max_length"]
    if not isinstance(most, int) or most < 1000:
        case.call(f"{model}.generate", partial(model.generate, **written))
    if readout in ("all", "last"):
        stream, step = model.stream(2), {"x": sequence(2) if tokens else play.numbers("x", 2, 4)}
        out = case.array("out", np.zeros((2, model.head.out_features), dtype), written=True)
        mask = case.one(None, np.array([True, False]))
        given = swapped(case, {**step, "out": case.one(None, out), "mask": mask})
        case.call("ModelStream.step", partial(stream.step, **given))


def play_loss(play: Play) -> None:
    """Losses of numbers, and of weighted classes with smoothed labels."""
    case = play.case
    shape = case.one((4,), (2, 3), (0, 3), ())
    loss: Any = case.one(rk.mse, rk.huber, rk.binary_cross_entropy, rk.softmax_cross_entropy)
    given: dict[str, Any] = {"mask": case.one(None, case.numbers.random(shape) < 0.5)}
    if loss is rk.softmax_cross_entropy:
        given |= {
            "logits": play.numbers("logits", *shape, 3),
            "targets": case.array("targets", case.numbers.integers(0, 3, shape), layouts=LAYOUTS),
            "class_weights": case.one(None, play.numbers("class_weights", 3) ** 2),
            "label_smoothing": case.one(0.0, 0.1, 1.0),
        }
    else:
        name = "logits" if loss is rk.binary_cross_entropy else "outputs"
        given[name] = play.numbers(name, *shape)
        given["targets"] = case.array("targets", case.numbers.random(shape), layouts=LAYOUTS)
        if loss is rk.huber:
            given["delta"] = 0.5
    given = swapped(case, given)
    result = case.call(f"{loss.__name__}, {sorted(given)}", lambda: loss(**given))
    if result is not None:
        results(given, *result)


def play_schedule(play: Play) -> None:
    """A schedule and an optimizer that takes it."""
    case = play.case
    kind: Any = case.one(rk.LinearRate, rk.CosineRate, rk.StepRate, rk.WarmUp)
    given: dict[str, Any] = {"first": 0.1, "last": 0.01, "steps": case.one(1, 3)}
    if kind is rk.StepRate:
        given = {"first": 0.1, "steps": 3, "factor": 0.5}
    elif kind is rk.WarmUp:
        given = {"steps": 3, "following": case.one(0.1, rk.CosineRate(0.1, 4))}
    given = swapped(case, given)
    rate = case.call(f"{kind.__name__}({given})", lambda: kind(**given))
    if rate is None:
        return
    params = {"p": play.numbers("p", 3, 2, written=True, layouts=("plain",))}
    options: dict[str, Any] = {"momentum": 0.5, "centered": case.chance(0.5), "decay": 0.9}
    options = swapped(case, options)
    optimizer = case.call("RMSprop", lambda: rk.RMSprop(params, rate, **options))
    if optimizer is not None:
        grads = swapped(case, {"p": play.numbers("dp", 3, 2)})
        for _ in range(3):
            case.call("step", guarded(lambda: optimizer.step(grads)))


def play(case: Case) -> None:
    """One hostile call, or a few that belong together."""
    parts = (play_piece, play_step, play_stack, play_model, play_loss, play_schedule)
    case.one(*parts)(Play(case))

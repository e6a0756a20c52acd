# SPDX-License-Identifier: Apache-2.0
"""rnnkern and its peers as callables that do the same work on the same numbers."""

from __future__ import annotations

from rnnkern._checks import Array
from rnnkern.bench import native
from rnnkern.bench.case import Case, Contender
from rnnkern.bench.jax_peer import jax_contender
from rnnkern.bench.onnx_peer import onnxruntime_contender
from rnnkern.bench.openvino_peer import openvino_contender
from rnnkern.bench.torch_peer import torch_contender

_WHOLE = "has nothing to pad in a whole batch"


def contenders(case: Case, threads: int) -> tuple[list[Contender], dict[str, str]]:
    """All that can do a case, this package first; and why the others cannot."""
    problem, able = case.problem, [rnnkern_contender(case)]
    absent: dict[str, str] = {}
    for name, found in (
        ("torch", torch_contender(case)),
        ("torch padded", torch_contender(case, padded=True) if problem.ragged else _WHOLE),
        ("onnxruntime", onnxruntime_contender(case, threads)),
        ("openvino", openvino_contender(case, threads)),
        ("jax", jax_contender(case, threads)),
        *((name, native_contender(case, name, threads)) for name in native.LIBRARIES),
    ):
        if isinstance(found, str):
            absent[name] = found
        else:
            able.append(found)
    return able, absent


def rnnkern_contender(case: Case) -> Contender:
    """The layer itself; for inference frozen, as ONNX Runtime and oneDNN too pack weights once."""
    layer = case.layer if case.problem.training else case.layer.freeze()

    def infer() -> list[Array]:
        return [layer(case.x, None, case.lengths)[0]]

    def train() -> list[Array]:
        y, _, tape = layer.forward(case.x, None, case.lengths)
        dx, _, grads = tape.backward(case.dy)
        return [y, dx, *(grads[name] for name in case.layer.params)]

    work = train if case.problem.training else infer
    return Contender("rnnkern", work, work)


def native_contender(case: Case, name: str, threads: int) -> Contender | str:
    """A C++ library through its adapter, or why it cannot do it."""
    problem = case.problem
    if (problem.compute or problem.dtype) != "float32":
        return "is measured in float32 alone"
    if problem.ragged or problem.layers > 1 or problem.bidirectional:
        return "is measured on one layer, one direction and whole batches"
    network = native.network(name, case.layer, problem, threads)
    if isinstance(network, str):
        return network

    def work() -> list[Array]:
        return network.run(case.x, case.dy)

    return Contender(name, work, work)

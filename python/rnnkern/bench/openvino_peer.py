# SPDX-License-Identifier: Apache-2.0
"""OpenVINO as a peer: the operators of ONNX, compiled for the processor."""

from __future__ import annotations

import sys

from rnnkern._checks import Array
from rnnkern.bench.case import Case, Contender
from rnnkern.bench.onnx_peer import as_ours, feeds, onnx_model


def openvino_contender(case: Case, threads: int) -> Contender | str:
    """A compiled model, or why there is none."""
    if case.problem.training:
        return "does not train"
    model = onnx_model(case)
    if isinstance(model, str):
        return model
    # As where that package is missing: the import would start a process that reports home.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        return "is not installed"
    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(model, b""), "CPU", options)
    request, feed = compiled.create_infer_request(), feeds(case)

    def work() -> Array:
        y: Array = request.infer(feed, share_inputs=True, share_outputs=True)[0]
        return y

    return Contender("openvino", work, lambda: [as_ours(work())])

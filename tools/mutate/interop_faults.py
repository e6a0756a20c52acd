# SPDX-License-Identifier: Apache-2.0
"""Faults in what comes from other frameworks and goes to them."""

from __future__ import annotations

from fault import fault

_INTEROP = "python/rnnkern/interop"
_TORCH = "python/rnnkern/torch"
_NODE = "interop/test_onnx_in.py::test_a_node"
_MODULE = "interop/test_pytorch.py::test_a_module_and_its_layer_compute_the_same"

INTEROP_FAULTS = [
    fault(
        f"{_INTEROP}/gates.py",
        "pytorchs-update-gate-keeps-its-sign",
        '"PyTorch": {"RNN": "h", "GRU": "r -u n"',
        '"PyTorch": {"RNN": "h", "GRU": "r u n"',
        _MODULE,
        peers=True,
    ),
    fault(
        f"{_INTEROP}/gates.py",
        "onnxs-output-gate-is-its-forget-gate",
        '"LSTM": "u o f n"',
        '"LSTM": "u f o n"',
        _NODE,
    ),
    fault(
        f"{_INTEROP}/gates.py",
        "the-candidates-recurrent-bias-counts-twice",
        "                of_h[own] = 0\n",
        "",
        _NODE,
    ),
    fault(
        f"{_INTEROP}/onnx/recurrent.py",
        "a-reverse-node-runs-forward",
        '"reverse": direction == "reverse",',
        '"reverse": False,',
        _NODE,
    ),
    fault(
        f"{_INTEROP}/onnx/recurrent.py",
        "peepholes-are-left-out",
        "    if not np.any(given):\n        return None",
        "    if np.any(given):\n        return None",
        _NODE,
    ),
    fault(
        f"{_INTEROP}/onnx/model.py",
        "a-gemms-bias-is-not-scaled",
        'c * b.dtype.type(node.attributes.get("beta", 1.0))',
        "c",
        "interop/test_onnx_in.py::test_what_stands_between",
    ),
    fault(
        f"{_INTEROP}/onnx/writing.py",
        "an-open-gate-is-half-open",
        "_OPEN = 100.0",
        "_OPEN = 0.0",
        "interop/test_onnx_out.py::test_onnxruntime_runs_a_layer",
    ),
    fault(
        f"{_TORCH}/calls.py",
        "a-module-runs-on-the-weights-that-it-had",
        "        twin.refresh()\n",
        "        pass\n",
        "interop/test_torch_modules.py::test_writing_to_weights_counts_and_memory_may_move",
        peers=True,
    ),
    fault(
        f"{_TORCH}/functions.py",
        "writing-to-what-was-kept-is-not-noticed",
        "saved = ctx.saved_tensors",
        "saved = ()",
        "interop/test_torch_modules.py::"
        "test_what_is_written_to_before_the_backward_pass_is_noticed",
        peers=True,
    ),
    fault(
        f"{_TORCH}/modules.py",
        "packed-rows-keep-their-order",
        "index_select(1, packed.unsorted_indices)",
        "index_select(1, packed.sorted_indices)",
        "interop/test_torch_modules.py::test_packed_sequences",
        peers=True,
    ),
]

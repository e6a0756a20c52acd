# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own samples of its recurrent modules, run by ours."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # PyTorch's tests use it
rt = pytest.importorskip("rnnkern.torch")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of PyTorch's tests


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_samples(name: str) -> None:
    common: Any = pytest.importorskip("torch.testing._internal.common_modules")
    cls = getattr(torch.nn, name)
    (info,) = (module for module in common.module_db if module.module_cls is cls)
    leaves = torch.utils._pytree.tree_leaves
    samples = 0
    options = {"device": "cpu", "dtype": torch.float64, "training": False}
    for sample in info.module_inputs_func(info, requires_grad=True, **options):
        made = dict(sample.constructor_input.kwargs, dtype=torch.float64, device="cpu")
        arguments = sample.constructor_input.args
        theirs, ours = cls(*arguments, **made).eval(), getattr(rt, name)(*arguments, **made).eval()
        ours.load_state_dict(theirs.state_dict())
        given = sample.forward_input
        results = []
        for module in (theirs, ours):
            found = leaves(module(*given.args, **given.kwargs))
            sum(tensor.sin().sum() for tensor in found).backward()
            results.append([*found, *(p.grad for p in module.parameters())])
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want)
        samples += 1
    assert samples >= 2
    refused = 0
    if info.module_error_inputs_func is None:
        return
    for wrong in info.module_error_inputs_func(info, requires_grad=False, **options):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            run(getattr(rt, name), wrong.module_error_input)
        refused += 1
    assert refused >= 4


def run(cls: Any, sample: Any) -> None:
    built, given = sample.constructor_input, sample.forward_input
    cls(*built.args, **built.kwargs)(*given.args, **given.kwargs)

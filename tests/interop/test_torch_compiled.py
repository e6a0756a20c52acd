# SPDX-License-Identifier: Apache-2.0
"""rnnkern.torch through torch.compile, torch.export and DistributedDataParallel.

The backend is mostly "aot_eager", which traces forward and backward as "inductor" does but compiles
nothing: the graphs are what matters here. One small model goes through "inductor", PyTorch's
default, which calls a compiler for C++.
"""

from __future__ import annotations

import gc
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.compare import assert_close
from support.processes import run_python

torch = pytest.importorskip("torch")
rt = pytest.importorskip("rnnkern.torch")

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own, of many kinds

MODULES: dict[str, Any] = {
    "gru": lambda: rt.GRU(5, 7, 2, bidirectional=True, batch_first=True),
    "lstm": lambda: rt.LSTM(5, 7, 2),
}


class Tagger(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A model around a recurrent module."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = torch.nn.Linear(7 * (2 if rnn.bidirectional else 1), 3)

    def forward(self, x: Any) -> Any:
        y, last = self.rnn(x.relu())
        h = last[0] if isinstance(last, tuple) else last
        return self.head(y).softmax(-1), h.sin()


def gradients(model: Any, module: Any, x: Any) -> list[Any]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    y, h = model(x)
    (y[..., 0].sum() + h.sum()).backward()
    return [y, h, x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("name", list(MODULES))
def test_compiled_whole(name: str) -> None:
    torch.manual_seed(0)
    module = Tagger(MODULES[name]())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for steps in (6, 4):  # the second time with sizes that are open
        x = torch.randn(steps, 3, 5)
        for got, want in zip(
            gradients(compiled, module, x), gradients(module, module, x), strict=True
        ):
            assert_close(name, got.detach().numpy(), want.detach().numpy(), 1e-6)
        with torch.no_grad():
            assert_close(name, compiled(x)[0].numpy(), module(x)[0].numpy(), 1e-6)
    torch.compiler.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_by_the_default_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # so that it does compile
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no processes that stay
    torch.manual_seed(0)
    module = Tagger(rt.GRU(5, 7))
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    x = torch.randn(4, 3, 5)
    for got, want in zip(gradients(compiled, module, x), gradients(module, module, x), strict=True):
        assert_close("inductor", got.detach().numpy(), want.detach().numpy(), 1e-6)
    assert list(tmp_path.rglob("*.so"))
    torch.compiler.reset()


def test_dropout_compiled() -> None:
    module = rt.LSTM(5, 70, 2, dropout=0.5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5)
    first, second = compiled(x)[0], compiled(x)[0]
    assert not torch.equal(first, second)
    first.sum().backward()
    torch.compiler.reset()


def test_tapes_live_as_long_as_their_graph() -> None:
    from rnnkern.torch.functions import _held

    compiled = torch.compile(rt.LSTM(5, 7), fullgraph=True, backend="aot_eager")
    gc.collect()
    before = len(_held)
    losses = [compiled(torch.randn(4, 3, 5))[0].sum() for _ in range(5)]
    assert len(_held) == before + 5
    losses[0].backward()
    del losses
    gc.collect()
    assert len(_held) == before
    torch.compiler.reset()


def test_exported() -> None:
    torch.manual_seed(0)
    module = Tagger(MODULES["gru"]()).eval()
    x = torch.randn(3, 6, 5)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("steps")}
    program = torch.export.export(module, (x,), dynamic_shapes=({**sizes},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for given in (x, torch.randn(2, 9, 5)):
        for exported in (program, torch.export.load(file)):
            file.seek(0)
            for got, want in zip(exported.module()(given), module(given), strict=True):
                assert_close("exported", got.detach().numpy(), want.detach().numpy(), 1e-6)


@pytest.mark.parametrize("cls", ["LSTM", "GRU", "MGU"])
def test_the_operators_are_what_they_say(cls: str) -> None:
    from rnnkern.torch.functions import _plain

    module = getattr(rt, cls)(5, 7, 2, bidirectional=True)
    x, h = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 3, 7, requires_grad=True)
    c = torch.randn(4, 3, 7) if cls == "LSTM" else None
    lengths = torch.tensor([4, 2, 1])
    arguments = (x, h, c, module._flat_weights, lengths, None, *_plain(module._spec()), True)
    torch.library.opcheck(
        torch.ops.rnnkern.forward.default, arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


def test_second_derivatives_are_refused_when_compiled() -> None:
    module = rt.LSTM(3, 4)
    x = torch.randn(2, 1, 3, requires_grad=True)
    y, *_ = torch.ops.rnnkern.forward(
        x, None, None, module._flat_weights, None, None,
        *[v if v is not None else "" for v in module._spec()], True,
    )  # fmt: skip
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="rnnkern has first derivatives alone"):
        dx.sum().backward()


def test_a_tape_that_was_not_kept_is_told() -> None:
    module = rt.LSTM(3, 4)
    x = torch.randn(2, 1, 3, requires_grad=True)
    y, *_ = torch.ops.rnnkern.forward(
        x, None, None, module._flat_weights, None, None,
        *[v if v is not None else "" for v in module._spec()], False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="has kept nothing for this backward pass"):
        y.sum().backward()


PARALLEL = """if True:
    import os
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    import rnnkern.torch as rt

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = rt.GRU(3, 4, 2), torch.nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=2)
    torch.manual_seed(0)
    whole = Whole()
    parallel = DistributedDataParallel(whole)
    x = torch.randn(5, 4, 3)
    parallel(x[:, 2 * rank : 2 * rank + 2]).pow(2).mean().backward()
    found = [p.grad.clone() for p in whole.parameters()]
    whole.zero_grad()
    whole(x).pow(2).mean().backward()
    for got, want in zip(found, whole.parameters(), strict=True):
        torch.testing.assert_close(got, want.grad)
    dist.destroy_process_group()
    print("agrees")
"""


def test_data_parallel_with_two_processes(tmp_path: Path) -> None:
    def one(rank: int) -> str:
        meeting = (tmp_path / "meeting").as_uri()
        ran = run_python(PARALLEL, RANK=str(rank), MEETING=meeting, OMP_NUM_THREADS="1")
        return ran.stdout or ran.stderr

    with ThreadPoolExecutor(2) as both:
        assert list(both.map(one, range(2))) == ["agrees\n"] * 2

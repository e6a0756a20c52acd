# SPDX-License-Identifier: Apache-2.0
"""The sides on which the GPU's kernels run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.cuda_kernels import Emulation, Gpu


@pytest.fixture(params=["emulation", pytest.param("gpu", marks=pytest.mark.gpu)])
def side(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = Emulation() if request.param == "emulation" else Gpu()
    yield made
    made.finish()

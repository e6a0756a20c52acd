# SPDX-License-Identifier: Apache-2.0
"""The instruction set that a test runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.isa import using_isa


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """In use while the test runs; a test's parameters say which."""
    with using_isa(request.param):
        yield request.param

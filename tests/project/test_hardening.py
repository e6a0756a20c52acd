# SPDX-License-Identifier: Apache-2.0
"""How the extension was linked: what its ELF file says."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from rnnkern import _core

PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 2, 0x6474E551, 0x6474E552
DT_FLAGS_1, DF_1_NOW, PF_X = 0x6FFFFFFB, 1, 1


@pytest.mark.skipif(sys.platform != "linux", reason="no ELF file")
def test_the_extension_is_hardened() -> None:
    image = Path(_core.__file__).read_bytes()
    assert image[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    # type -> flags, place and length of the segment
    segments = {}
    for k in range(count):
        kind, flags, begin = struct.unpack_from("<IIQ", image, table + k * size)
        (length,) = struct.unpack_from("<Q", image, table + k * size + 32)
        segments[kind] = flags, begin, length
    assert PT_GNU_RELRO in segments, "tables of functions stay writable"
    assert not segments[PT_GNU_STACK][0] & PF_X, "the stack can be executed"
    _, begin, length = segments[PT_DYNAMIC]
    dynamic = dict(struct.iter_unpack("<QQ", image[begin : begin + length]))
    assert dynamic.get(DT_FLAGS_1, 0) & DF_1_NOW, "functions are bound only when first called"
    assert b"\0__stack_chk_fail\0" in image, "stacks are not guarded"


@pytest.mark.skipif(sys.platform != "linux", reason="no ELF file")
def test_the_extension_does_not_tell_where_it_was_built() -> None:
    image = Path(_core.__file__).read_bytes()
    for place in (str(Path.home()), str(Path(__file__).resolve().parents[2])):
        assert place.encode() not in image

# SPDX-License-Identifier: Apache-2.0
"""The walk through a step's machine code, and what that code must be."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

walk_step: Any = pytest.importorskip("walk_step", reason="tools are not in an sdist")
check_sass: Any = pytest.importorskip("check_sass")
machine: Any = pytest.importorskip("walk.machine")
walk_code: Any = pytest.importorskip("walk.code")


def listed(*lines: str, waits: dict[int, int] | None = None) -> Any:
    """The code of a kernel of these instructions, each a stall of 4; labels end in a colon."""
    text, at = [".text.kernel:"], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
            continue
        loads = line.split(" ")[line[0] == "@"].startswith(("LDG", "LDS", "I2F", "F2I", "MUFU"))
        control = 4 | (0 if loads else 7) << 5 | 7 << 8 | (waits or {}).get(at, 0) << 11
        text.append(f"        /*{16 * at:04x}*/   {line} ;   /* 0x0000000000000000 */")
        text.append(f"                            /* 0x{control << 41:016x} */")
        at += 1
    (code,) = walk_code.read(text).values()
    return code


def walked(code: Any, memory: Any = lambda *_: None, parameters: bytes = b"") -> Any:
    thread = machine.Thread(code, parameters, memory, thread=5, block=3)
    return thread, list(thread.run())


def test_a_loop_runs_as_often_as_its_numbers_say() -> None:
    code = listed(
        "S2R R0, SR_TID.X",
        "LDC R4, c[0x0][0x210]",
        ".L_x_0:",
        "IADD3 R0, R0, 0x1, RZ",
        "ISETP.GE.AND P0, PT, R0, R4, PT",
        "@!P0 BRA `(.L_x_0)",
        "IMAD.WIDE R2, R0, -0x2, RZ",
        "EXIT",
    )
    thread, visits = walked(code, parameters=(8).to_bytes(4, "little"))
    assert sum(v.instruction.name == "IADD3" for v in visits) == 3
    assert thread.get("R0") == 8
    assert thread.get("R2", 8) == 2**64 - 16
    assert thread.unknown == 0


def test_carries_shifts_and_choices() -> None:
    code = listed(
        "MOV R0, 0xffffffff",
        "MOV R1, 0x7",
        "IADD3 R2, P0, R0, 0x1, RZ",
        "IADD3.X R3, R1, RZ, RZ, P0, !PT",
        "SHF.R.S32.HI R4, RZ, 0x1f, R0",
        "LOP3.LUT P1, R5, R1, 0x3, RZ, 0xc0, !PT",
        "LEA.HI R6, R0, R1, RZ, 0x8",
        "SEL R7, R1, R0, !P1",
        "PLOP3.LUT P2, PT, P0, P1, PT, 0x80, 0x0",
        "ISETP.LT.AND P3, PT, R0, RZ, P2",
        "VIADDMNMX R8, R1, -R1, 0x3, !PT",
        "EXIT",
    )
    thread, _ = walked(code)
    got = [thread.get(f"R{k}") for k in range(2, 9)]
    assert got == [0, 8, 0xFFFFFFFF, 3, 7 + 0xFF, 0xFFFFFFFF, 3]
    assert [thread.holds(p) for p in ("P0", "P1", "P2", "P3", "!P3")] == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(("number", "by"), [(100, 7), (2**31, 12), (5, 96), (0, 3), (640, 64)])
def test_a_division_as_ptxas_writes_it(number: int, by: int) -> None:
    code = listed(
        f"MOV R2, {by:#x}",
        f"MOV R8, {number:#x}",
        "I2F.U32.RP R0, R2",
        "IMAD.MOV R3, RZ, RZ, -R2",
        "MUFU.RCP R0, R0",
        "IADD3 R4, R0, 0xffffffe, RZ",
        "F2I.FTZ.U32.TRUNC.NTZ R5, R4",
        "IMAD.MOV.U32 R4, RZ, RZ, RZ",
        "IMAD R3, R3, R5, RZ",
        "IMAD.HI.U32 R5, R5, R3, R4",
        "IMAD.HI.U32 R9, R5, R8, RZ",
        "IADD3 R3, -R9, RZ, RZ",
        "IMAD R3, R2, R3, R8",
        "ISETP.GE.U32.AND P0, PT, R3, R2, PT",
        "@P0 IMAD.IADD R3, R3, 0x1, -R2",
        "@P0 VIADD R9, R9, 0x1",
        "ISETP.GE.U32.AND P1, PT, R3, R2, PT",
        "@P1 VIADD R9, R9, 0x1",
        "EXIT",
    )
    thread, _ = walked(code)
    assert thread.get("R9") == number // by


def test_time_waits_for_memory_and_unknown_branches_pass_over_calls() -> None:
    code = listed(
        "MOV R2, 0x100",
        "MOV R3, RZ",
        "LDG.E R0, desc[UR4][R2.64+0x4]",
        "IADD3 R1, R0, 0x1, RZ",
        "FSETP.GT.AND P0, PT, R5, RZ, PT",
        "@P0 BRA `(.L_x_1)",
        "CALL.REL.NOINC `($rare)",
        ".L_x_1:",
        "EXIT",
        "$rare:",
        "BRA `($rare)",
        waits={3: 1},
    )
    thread, visits = walked(code, memory=lambda at, size: at + size)
    assert thread.get("R1") == 0x104 + 4 + 1
    assert thread.unknown == 1
    assert visits[3].time - visits[2].time == machine.LATENCY["LDG"]
    assert visits[-1].instruction.name == "EXIT"


def test_code_that_ends_before_its_flags_is_told() -> None:
    facts = {"blocks": 1, "phases": 1, "parameters": "", "order": 0, "offset": 0, "flags": 0}
    with pytest.raises(RuntimeError, match="the code ended after 2 stretches and 0 flags"):
        walk_step.stretches(listed("BAR.SYNC.DEFER_BLOCKING 0x0", "EXIT"), facts, 1)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """LSTM's kernels on tensor cores, compiled."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    for name in ("nvdisasm", "cuobjdump"):
        if check_sass.found(name) is None:
            pytest.skip(f"no {name}: pip install nvidia-cuda-{name}")
    folder, made = tmp_path_factory.mktemp("walk"), {}
    for way in ("forward", "backward"):
        facts = walk_step.arguments_of(folder, "lstm", "768", "16", "1024", "768", way)
        made[way] = (walk_step.compile_kernel(folder, way, facts), facts)
    return made


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_the_code_of_a_step(kernels: dict[str, Any], way: str) -> None:
    cubin, facts = kernels[way]
    (counts,) = check_sass.read_file(cubin).values()
    assert list(check_sass.faults(f"{way.title()}, tensor", counts)) == []
    (code,) = walk_code.read(walk_step.disassemble(cubin)).values()
    found, unknown = walk_step.stretches(code, facts, 16)
    assert unknown == 0
    names = [stage.name for stage in walk_step.stages(found, facts["phases"])]
    wait = "flag, stores, fetches, wait for flags"
    assert names == [wait, "copy of the operand", "products", "equations"]
    # Before the flag a thread stores the operand, and nothing else.
    flags = [k for k, stretch in enumerate(found) if stretch.publishes]
    before = [v.instruction.name for visits in found[flags[-1] - 1].visits for v in visits]
    assert {name for name in before if name.startswith("STG")} == {"STG.E.U16"}

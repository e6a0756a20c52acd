# SPDX-License-Identifier: Apache-2.0
"""What instructions do to a thread's registers.

Whole numbers, addresses and conditions are computed as the code says; what comes from memory that
nobody described, and all floating point but what divisions of whole numbers need, is unknown: None.
"""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable, Iterable, Iterator

from walk.code import Instruction

PARAMETERS = 0x210  # where a kernel's begin, in the constants
MASK = 0xFFFFFFFF

Memory = Callable[[int, int], "int | None"]  # (address, bytes) -> what is there


def signed(value: int, bits: int = 32) -> int:
    """Of bits of which the highest is a sign."""
    value &= (1 << bits) - 1
    return value - (value >> bits - 1 << bits)


def as_float(bits: int) -> float:
    """The float32 of these bits."""
    found: float = struct.unpack("<f", struct.pack("<I", bits & MASK))[0]
    return found


def as_bits(value: float) -> int:
    """The bits of the nearest float32."""
    found: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return found


class Registers:
    """Of a thread, and the constants that it sees."""

    def __init__(
        self, parameters: bytes, memory: Memory, *, thread: int = 0, block: int = 0
    ) -> None:
        self.memory = memory
        self.special = {"SR_TID.X": thread, "SR_CTAID.X": block, "SR_LANEID": thread % 32}
        self.constants = bytes(PARAMETERS) + parameters
        self.registers: dict[str, int | None] = {}

    # -- operands ------------------------------------------------------------------------------

    def get(self, text: str, size: int = 4) -> int | None:
        """What an operand holds, as `size` bytes without a sign."""
        bits = 8 * size
        if text[0] in "-~|":
            value = self.get(text[1:].rstrip("|"), size)
            if value is None:
                return None
            value = {"-": -value, "~": ~value, "|": abs(signed(value))}[text[0]]
            return value & ((1 << bits) - 1)
        if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text):
            return int(text, 0) & ((1 << bits) - 1)
        if text.startswith("c["):
            return self._constant(text, size)
        kind = re.fullmatch(r"(U?R)(\d+|Z)", text)
        if not kind:
            return None
        if kind[2] == "Z":
            return 0
        low = self.registers.get(text, 0)
        if size < 8:
            return low
        high = self.registers.get(f"{kind[1]}{int(kind[2]) + 1}", 0)
        return None if low is None or high is None else high << 32 | low

    def _put(self, text: str, value: int | None, size: int = 4) -> None:
        if kind := re.fullmatch(r"(U?R)(\d+)", text):
            for k in range((size + 3) // 4):
                name = f"{kind[1]}{int(kind[2]) + k}"
                self.registers[name] = None if value is None else value >> 32 * k & MASK

    def _constant(self, text: str, size: int) -> int | None:
        found = re.fullmatch(r"c\[0x0\]\[(?:(U?R\d+)\+?)?(0x[0-9a-f]+)?\]", text)
        if not found:
            return None
        base = self.get(found[1]) if found[1] else 0
        if base is None:
            return None
        at = base + int(found[2] or "0", 16)
        raw = self.constants[at : at + size]
        return int.from_bytes(raw, "little") if len(raw) == size and at >= PARAMETERS else None

    def holds(self, text: str) -> bool | None:
        """A condition."""
        if text.startswith("!"):
            value = self.holds(text[1:])
            return None if value is None else not value
        if text in ("PT", "UPT"):
            return True
        found = self.registers.get(text)
        return None if found is None else bool(found)

    def _set_condition(self, text: str, value: bool | None) -> None:
        if text not in ("PT", "UPT"):
            self.registers[text] = None if value is None else int(value)

    def _address(self, text: str) -> int | None:
        found = re.search(
            r"\[(U?R\d+|RZ)?(?:\.64|\.U32|\.X\d+)*(?:\+?(U?R\d+))?\+?(-?0x\w+)?\]$", text
        )
        if not found:
            return None
        total = int(found[3] or "0", 16)
        for part in (found[1], found[2]):
            if part:
                value = self.get(part, 8 if ".64" in text and part == found[1] else 4)
                if value is None:
                    return None
                total += value
        return total

    # -- what instructions do ------------------------------------------------------------------

    def execute(self, i: Instruction) -> None:
        """Changes the registers as an instruction does."""
        base, *rest = i.name.removeprefix("U").split(".")
        if handle := getattr(self, "_do_" + base.lower(), None):
            handle(i.operands, set(rest))
            return
        for text in i.operands[:1]:
            if re.fullmatch(r"U?P\d", text):
                self._set_condition(text, None)
            elif base not in ("BRA", "ST", "STS", "STG", "LDGSTS", "RET"):
                self._put(
                    text, None, 16 if "128" in rest or base == "HMMA" else 8 if "64" in rest else 4
                )

    def _split(self, operands: tuple[str, ...]) -> tuple[str, list[str], list[str]]:
        """Destination, the conditions behind it, and the rest."""
        behind = 1
        while behind < len(operands) and re.fullmatch(r"U?P[T\d]", operands[behind]):
            behind += 1
        return operands[0], list(operands[1:behind]), list(operands[behind:])

    def _sources(self, texts: Iterable[str], size: int = 4) -> list[int] | None:
        values = [self.get(text, size) for text in texts]
        found = [v for v in values if v is not None]
        return found if len(found) == len(values) else None

    def _do_mov(self, o: tuple[str, ...], _: set[str]) -> None:
        self._put(o[0], self.get(o[1]))

    _do_r2ur = _do_mov

    def _do_cs2r(self, o: tuple[str, ...], kinds: set[str]) -> None:
        self._put(o[0], 0 if o[1] == "SRZ" else None, 4 if "32" in kinds else 8)

    def _do_s2r(self, o: tuple[str, ...], _: set[str]) -> None:
        self._put(o[0], self.special.get(o[1], 0))

    _do_s2ur = _do_s2r

    def _do_ldc(self, o: tuple[str, ...], kinds: set[str]) -> None:
        size = 8 if "64" in kinds else 1 if {"U8", "S8"} & kinds else 4
        self._put(o[0], self.get(o[1], size), max(size, 4))

    def _do_ldg(self, o: tuple[str, ...], kinds: set[str]) -> None:
        size = 16 if "128" in kinds else 8 if "64" in kinds else 2 if "U16" in kinds else 4
        at = self._address(o[-1])
        self._put(o[0], None if at is None else self.memory(at, size), max(size, 4))

    def _add(self, o: tuple[str, ...], kinds: set[str], size: int = 4) -> None:
        to, carries, rest = self._split(o)
        taken = [text for text in rest if re.fullmatch(r"!?U?P[T\d]", text)]
        numbers = self._sources((text for text in rest if text not in taken), size)
        conditions = [self.holds(text) for text in taken]
        total = None
        if numbers is not None and None not in conditions:
            total = sum(numbers) + sum(map(bool, conditions))
            # -0 is ~0 + 1, whose carry counts.
            total += sum(
                1 << 32 for t, n in zip(rest, numbers, strict=False) if t[0] == "-" and n == 0
            )
        self._put(to, total, size)
        for k, text in enumerate(carries):
            self._set_condition(text, None if total is None else total >> 8 * size > k)

    _do_iadd3 = _do_viadd = _add

    def _do_imad(self, o: tuple[str, ...], kinds: set[str]) -> None:
        to, carries, rest = self._split(o)
        wide = bool({"WIDE", "HI"} & kinds)
        a, b = self.get(rest[0]), self.get(rest[1])
        c = self.get(rest[2], 8 if wide else 4)
        more = self.holds(rest[3]) if len(rest) > 3 else False
        total = None
        if a is not None and b is not None and c is not None and more is not None:
            if wide and "U32" not in kinds:
                a, b = signed(a), signed(b)
            total = ((a * b) & ((1 << 64) - 1 if wide else MASK)) + c + more
            if rest[2][0] == "-" and c == 0:
                total += 1 << 32
        size = 8 if wide else 4
        for text in carries:
            self._set_condition(text, None if total is None else total >> 8 * size > 0)
        if "HI" in kinds:
            self._put(to, None if total is None else total >> 32 & MASK)
        else:
            self._put(to, total, size)

    def _do_lea(self, o: tuple[str, ...], kinds: set[str]) -> None:
        to, carries, rest = self._split(o)
        more: bool | None = False
        if "X" in kinds:
            more = self.holds(rest.pop())
        numbers = self._sources(rest)
        total = None
        if numbers is not None and more is not None:
            *operands, shift = numbers
            if "HI" not in kinds:
                total = ((operands[0] << shift) & MASK) + operands[1] + more
                negated = rest[0][0] == "-"
                total += (1 << 32) if negated and operands[0] == 0 else 0
            else:
                upper = operands[2] if len(operands) > 2 else 0
                if "SX32" in kinds:
                    upper = MASK if operands[0] >> 31 else 0
                total = ((upper << 32 | operands[0]) >> 32 - shift & MASK) + operands[1] + more
        self._put(to, total)
        for text in carries:
            self._set_condition(text, None if total is None else total >> 32 > 0)

    def _do_lop3(self, o: tuple[str, ...], _: set[str]) -> None:
        conditions = [o[0]] if re.fullmatch(r"U?P[T\d]", o[0]) else []
        to, *rest = o[len(conditions) :]
        table = self.get(rest[3])
        values, result = [self.get(t) for t in rest[:3]], 0
        known = None not in values
        if values.count(None) == 1 and table == 0xC0 and 0 in values[:2]:
            known, values = True, [0, 0, 0]
        for bit in range(32) if known else ():
            index = sum((v or 0) >> bit & 1 and 4 >> k for k, v in enumerate(values))
            assert table is not None
            result |= (table >> index & 1) << bit
        self._put(to, result if known else None)
        for text in conditions:
            self._set_condition(text, result != 0 if known else None)

    def _do_plop3(self, o: tuple[str, ...], _: set[str]) -> None:
        values = [self.holds(text) for text in o[2:5]]
        for to, table in ((o[0], int(o[5], 16)), (o[1], int(o[6], 16))):
            results = {
                table >> sum(4 >> k for k, v in enumerate(choice) if v) & 1
                for choice in choices(values)
            }
            self._set_condition(to, bool(results.pop()) if len(results) == 1 else None)

    def _do_shf(self, o: tuple[str, ...], kinds: set[str]) -> None:
        numbers = self._sources(o[1:4])
        if numbers is None:
            self._put(o[0], None)
            return
        low, shift, high = numbers
        whole = high << 32 | low
        if {"S32", "S64"} & kinds:
            whole = signed(whole, 64)
        shift = min(shift, 63)
        if "L" in kinds:
            result = whole << shift
            result = result >> 32 if "HI" in kinds else (low << shift if shift < 32 else 0)
        else:
            result = (whole >> 32) >> min(shift, 32) if "HI" in kinds else whole >> shift
        self._put(o[0], result & MASK)

    def _do_isetp(self, o: tuple[str, ...], kinds: set[str]) -> None:
        compare = next(k for k in kinds if k in _COMPARE)
        a, b, other = self.get(o[2]), self.get(o[3]), self.holds(o[4])
        result: bool | None = None
        if a is not None and b is not None:
            if "U32" not in kinds:
                a, b = signed(a), signed(b)
            result = _COMPARE[compare](a, b)
            if "EX" in kinds:
                lower = self.holds(o[5])
                if compare == "NE":
                    result = result or lower
                elif compare == "EQ":
                    result = result and lower
                elif a == b:
                    result = lower
        both = {
            "AND": (operator.and_, False),
            "OR": (operator.or_, True),
            "XOR": (operator.xor, None),
        }
        combine, decided = both[next(k for k in kinds if k in both)]
        if result is None or other is None:
            known = result if other is None else other
            whole = known if decided is not None and known is decided else None
        else:
            whole = bool(combine(result, other))
        self._set_condition(o[0], whole)
        if o[1] not in ("PT", "UPT"):
            self._set_condition(o[1], None)

    def _do_sel(self, o: tuple[str, ...], _: set[str]) -> None:
        choice = self.holds(o[3])
        self._put(o[0], None if choice is None else self.get(o[1] if choice else o[2]))

    def _do_prmt(self, o: tuple[str, ...], _: set[str]) -> None:
        numbers = self._sources(o[1:4])
        if numbers is not None:
            low, choice, high = numbers
            raw = (high << 32 | low).to_bytes(8, "little")
            picked = bytes(raw[choice >> 4 * k & 7] for k in range(4))
            self._put(o[0], int.from_bytes(picked, "little"))
        else:
            self._put(o[0], None)

    def _do_iabs(self, o: tuple[str, ...], _: set[str]) -> None:
        value = self.get(o[1])
        self._put(o[0], None if value is None else abs(signed(value)))

    def _do_vimnmx(self, o: tuple[str, ...], kinds: set[str]) -> None:
        self._extreme(o[0], self._sources(o[1:3]), self.holds(o[-1]), kinds)

    def _do_viaddmnmx(self, o: tuple[str, ...], kinds: set[str]) -> None:
        numbers = self._sources(o[1:4])
        pair = None if numbers is None else [numbers[0] + numbers[1] & MASK, numbers[2]]
        self._extreme(o[0], pair, self.holds(o[-1]), kinds)

    _do_imnmx = _do_vimnmx

    def _extreme(
        self, to: str, pair: list[int] | None, least: bool | None, kinds: set[str]
    ) -> None:
        if pair is None or least is None:
            self._put(to, None)
            return
        if "U32" not in kinds:
            pair = [signed(v) for v in pair]
        self._put(to, (min(pair) if least else max(pair)) & MASK)

    # Floating point, as far as divisions of whole numbers need it.

    def _do_i2f(self, o: tuple[str, ...], kinds: set[str]) -> None:
        size = 8 if {"U64", "S64"} & kinds else 4
        value = self.get(o[1], size)
        if value is not None and not {"U32", "U64"} & kinds:
            value = signed(value, 8 * size)
        self._put(o[0], None if value is None else as_bits(value))

    def _do_f2i(self, o: tuple[str, ...], kinds: set[str]) -> None:
        value, size = self.get(o[1]), 8 if {"U64", "S64"} & kinds else 4
        known = value is not None and abs(as_float(value)) < 2.0 ** (8 * size)
        self._put(o[0], int(as_float(value or 0)) & ((1 << 8 * size) - 1) if known else None, size)

    def _do_mufu(self, o: tuple[str, ...], kinds: set[str]) -> None:
        value = self.get(o[1]) if "RCP" in kinds else None
        # The sequence of ptxas wants no more than the true value.
        known = value is not None and as_float(value) not in (0.0, float("inf"))
        self._put(o[0], as_bits(1 / as_float(value or 0)) - 1 if known else None)


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}


def choices(values: list[bool | None]) -> Iterator[list[bool]]:
    """Every way to fill in what is unknown."""
    if None not in values:
        yield [bool(v) for v in values]
        return
    k = values.index(None)
    for value in (False, True):
        yield from choices([*values[:k], value, *values[k + 1 :]])

# SPDX-License-Identifier: Apache-2.0
"""Pictures of documents, made from records: SVG that is the same text for the same record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from rnnkern.bench.report import best_ratio
from rnnkern.cells import CELLS
from rnnkern.explore.pictures import style_of

_SHAPES = (
    ("one sequence", (1, 100, 128), "train"),
    ("16 sequences", (16, 50, 128), "train"),
    ("64 sequences", (64, 50, 512), "train"),
    ("32, of unequal length", (32, 200, 256), "train, ragged"),
)
_PEERS = {
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "onednn": "oneDNN",
    "libxsmm": "libxsmm",
}

_WIDTH, _LEFT, _RIGHT, _TOP, _BAR, _GAP = 760, 190, 50, 66, 15, 16


def speed_picture(record: Mapping[str, Any]) -> str:
    """Training of each cell against the fastest peer: bars by shape, from a record of layers."""
    lines = [line for line in record["layers"] if line["work"].startswith("train")]
    cells = [name for name in CELLS if any(x["cell"] == name and x["ratios"] for x in lines)]
    groups = [(name, size, list(_ratios(lines, size, work, cells))) for name, size, work in _SHAPES]
    most = max(ratio for _, _, bars in groups for _, ratio in bars)
    one, scale = _LEFT + 60.0, (_WIDTH - _RIGHT - _LEFT - 60.0) / math.log2(most)
    height = _TOP + sum(len(bars) * _BAR + _GAP for _, _, bars in groups) + 62
    parts = [
        _text(12, 24, "Training a recurrent layer: times as fast as the fastest peer", size=17),
        _text(12, 44, _told(record, lines), size=12, color="#555"),
    ]
    bottom = height - 62
    for tick in (1, 2, 4, 8, 16, 32):
        if tick <= most:
            x = one + scale * math.log2(tick)
            line = "#000" if tick == 1 else "#ddd"
            parts.append(f'<path d="M{x:.1f} {_TOP - 6}V{bottom}" stroke="{line}"/>')
            parts.append(_text(x, bottom + 16, f"{tick}×", anchor="middle", color="#555"))
    y = float(_TOP)
    for name, (batch, steps, hidden), bars in groups:
        middle = y + len(bars) * _BAR / 2
        parts.append(_text(_LEFT - 14, middle - 2, name, anchor="end"))
        told = f"B {batch}, T {steps}, H {hidden}"
        parts.append(_text(_LEFT - 14, middle + 13, told, anchor="end", size=11, color="#555"))
        for cell, ratio in bars:
            end = one + scale * math.log2(ratio)
            left, width = min(one, end), max(abs(end - one), 1.0)
            parts.append(
                f'<rect x="{left:.1f}" y="{y + 1:.1f}" width="{width:.1f}" '
                f'height="{_BAR - 2}" fill="{style_of(cell).color}"/>'
            )
            parts.append(_text(max(one, end) + 5, y + 12, f"{ratio:.1f}", size=11))
            y += _BAR
        y += _GAP
    parts += _legend(cells, height - 16)
    return _svg(_WIDTH, height, parts)


def _ratios(
    lines: Sequence[Mapping[str, Any]], size: tuple[int, int, int], work: str, cells: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """The cells that have a peer at that size, and how many times as fast as it they are."""
    for cell in cells:
        for line in lines:
            own = (line["batch"], line["steps"], line["hidden"]) == size
            if own and line["work"] == work and line["cell"] == cell:
                ratio = best_ratio(dict(line))
                if ratio is not None:
                    yield cell, ratio


def _told(record: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, and where."""
    peers = [name for key, name in _PEERS.items() if any(key in x["ratios"] for x in lines)]
    told = f"float32, I = H, {record['processor']}, {record['date'][:10]}"
    return f"{told}; peers: {', '.join(peers)}"


def _legend(cells: Sequence[str], y: float) -> Iterator[str]:
    x = float(_LEFT)
    for cell in cells:
        label, color, *_ = style_of(cell)
        yield f'<rect x="{x:.0f}" y="{y - 11:.0f}" width="13" height="13" fill="{color}"/>'
        yield _text(x + 18, y, label)
        x += 46 + 7.2 * len(label)


def _text(
    x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", color: str = "#000"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{color}">{escape(text)}</text>'
    )


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="Helvetica, Arial, sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{inside}\n</svg>\n'
    )

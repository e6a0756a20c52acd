# SPDX-License-Identifier: Apache-2.0
"""Draws the cells: python tools/cell_drawings.py writes docs/cells/NAME.svg for each of them.

The state runs along the top, from left to right; h_{t-1} and x_t run along the bottom, and every
box takes both, multiplies them by its own weights, adds its bias and applies its function.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from rnnkern.cells import CELLS

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "cells"

TOP, MIDDLE, BOX, RESET, RAIL_H, RAIL_X = 44, 104, 164, 208, 262, 284
WIDTH, HEIGHT, LEFT, RIGHT = 520, 312, 62, 462
GATE, CANDIDATE, PLAIN = "#F3C677", "#8FC1E3", "#FFFFFF"


class Drawing:
    """An SVG, part by part."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._parts: list[str] = []

    def line(self, *points: tuple[float, float], arrow: bool = True) -> None:
        """From point to point, with an arrow at the end."""
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        marker = ' marker-end="url(#a)"' if arrow else ""
        self._lines.append(f'<path d="{path}" fill="none" stroke="#333"{marker}/>')

    def text(self, x: float, y: float, text: str, anchor: str = "middle", size: int = 15) -> None:
        """With one subscript, as ``h_t``, or ``h_{t-1}``."""
        name, _, below = text.partition("_")
        inside = escape(name)
        if below:
            shift = f'<tspan dy="4" font-size="{size - 4}">{escape(below.strip("{}"))}</tspan>'
            inside += shift
        self._parts.append(
            f'<text x="{x:g}" y="{y + 5:g}" font-size="{size}" text-anchor="{anchor}">{inside}'
            "</text>"
        )

    def box(self, x: float, y: float, text: str, color: str, width: float = 54) -> None:
        """What multiplies by weights, or applies a function."""
        height = 40 if width == 54 else 24
        self._parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" '
            f'height="{height}" rx="6" fill="{color}" stroke="#333"/>'
        )
        self.text(x, y, text, size=15 if width == 54 else 13)

    def op(self, x: float, y: float, text: str) -> None:
        """An elementwise operation."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="12" fill="#fff" stroke="#333"/>')
        self.text(x, y, text, size=13)

    def svg(self) -> str:
        """The whole file."""
        marker = (
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#333"/></marker></defs>'
        )
        inside = "\n".join([marker, *self._lines, *self._parts])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif">\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n{inside}\n</svg>\n'
        )

    # -- what several cells have -----------------------------------------------------------------

    def rails(self, last: float, *, h_from_above: bool) -> None:
        """h_{t-1} and x_t along the bottom, up to the box at ``last``."""
        if h_from_above:
            self.line((LEFT + 14, TOP), (LEFT + 14, RAIL_H), (last - 14, RAIL_H), arrow=False)
        else:
            self.line((LEFT, RAIL_H), (last - 14, RAIL_H), arrow=False)
            self.text(LEFT - 6, RAIL_H, "h_{t-1}", "end")
        self.line((LEFT, RAIL_X), (last + 14, RAIL_X), arrow=False)
        self.text(LEFT - 6, RAIL_X, "x_t", "end")

    def fed(self, x: float, text: str, color: str = GATE, *, reset: str | None = None) -> None:
        """A box that takes h_{t-1} and x_t; ``reset``: where a gate multiplies what comes of h."""
        if reset is None:
            self.line((x - 14, RAIL_H), (x - 14, BOX + 21))
        else:
            self.line((x - 14, RAIL_H), (x - 14, RESET + 13))
            self.line((x - 14, RESET - 12), (x - 14, BOX + 21))
            self.op(x - 14, RESET, "×")
            if reset == "after":
                self.box(x - 14, RAIL_H - 22, "W_hn", PLAIN, width=44)
        self.line((x + 14, RAIL_X), (x + 14, BOX + 21))
        self.box(x, BOX, text, color)

    def alone(self, x: float, y: float, text: str, color: str = GATE) -> None:
        """A box that takes x_t alone."""
        self.line((x, RAIL_X), (x, y + 21))
        self.box(x, y, text, color)

    def x_rail(self, last: float) -> None:
        """x_t along the bottom, up to ``last``."""
        self.line((LEFT, RAIL_X), (last, RAIL_X), arrow=False)
        self.text(LEFT - 6, RAIL_X, "x_t", "end")

    def state(self, y: float, before: str, after: str) -> None:
        """The line of a state along the top."""
        self.line((LEFT, y), (RIGHT, y))
        self.text(LEFT - 6, y, before, "end")
        self.text(RIGHT + 6, y, after, "start")


def _rnn(drawing: Drawing) -> None:
    drawing.rails(250, h_from_above=False)
    drawing.line((250, BOX - 20), (250, TOP), (RIGHT, TOP))
    drawing.text(RIGHT + 6, TOP, "h_t", "start")
    drawing.fed(250, "tanh", CANDIDATE)


def _mixed(drawing: Drawing, gate: float, candidate: float, name: str) -> None:
    """h_t = u·n + (1-u)·h_{t-1}, of the gate and the candidate at these places."""
    drawing.state(TOP, "h_{t-1}", "h_t")
    drawing.line((gate, BOX - 20), (gate, MIDDLE - 12))
    drawing.line((gate, MIDDLE - 24 - 12), (gate, TOP + 13))
    drawing.op(gate, MIDDLE - 24, "1−")
    drawing.line((gate, MIDDLE + 14), (candidate - 13, MIDDLE + 14))
    drawing.text(gate + 12, MIDDLE + 2, name, "start")
    drawing.line((candidate, BOX - 20), (candidate, MIDDLE + 27))
    drawing.text(candidate + 8, BOX - 34, "n_t", "start")
    drawing.line((candidate, MIDDLE + 2), (candidate, TOP + 13))
    drawing.op(candidate, MIDDLE + 14, "×")
    drawing.op(candidate, TOP, "+")
    drawing.op(gate, TOP, "×")


def _simplified_gru(drawing: Drawing) -> None:
    drawing.rails(350, h_from_above=True)
    _mixed(drawing, 200, 350, "u_t")
    drawing.fed(200, "σ")
    drawing.fed(350, "tanh", CANDIDATE)


def _mgu(drawing: Drawing) -> None:
    drawing.rails(360, h_from_above=True)
    _mixed(drawing, 180, 360, "f_t")
    drawing.line((270, MIDDLE + 14), (270, RESET), (333, RESET))
    drawing.fed(180, "σ")
    drawing.fed(360, "tanh", CANDIDATE, reset="before")


def _gru(drawing: Drawing, reset: str) -> None:
    drawing.rails(390, h_from_above=True)
    _mixed(drawing, 240, 390, "u_t")
    drawing.line((140, BOX - 20), (140, BOX - 34), (310, BOX - 34), (310, RESET), (363, RESET))
    drawing.text(148, BOX - 45, "r_t", "start")
    drawing.fed(140, "σ")
    drawing.fed(240, "σ")
    drawing.fed(390, "tanh", CANDIDATE, reset=reset)


def _lstm(drawing: Drawing) -> None:
    drawing.rails(370, h_from_above=False)
    drawing.state(TOP, "c_{t-1}", "c_t")
    for x, name in ((110, "f_t"), (190, "u_t"), (280, "n_t"), (370, "o_t")):
        drawing.text(x + 8, BOX - 34, name, "start")
    drawing.line((110, BOX - 20), (110, TOP + 13))
    drawing.line((190, BOX - 20), (190, MIDDLE), (267, MIDDLE))
    drawing.line((280, BOX - 20), (280, MIDDLE + 13))
    drawing.line((280, MIDDLE - 12), (280, TOP + 13))
    drawing.line((370, BOX - 20), (370, MIDDLE + 14), (417, MIDDLE + 14))
    drawing.line((430, TOP), (430, MIDDLE + 1))
    drawing.line((430, MIDDLE + 26), (430, BOX), (RIGHT, BOX))
    drawing.text(RIGHT + 6, BOX, "h_t", "start")
    drawing.op(110, TOP, "×")
    drawing.op(280, TOP, "+")
    drawing.op(280, MIDDLE, "×")
    drawing.op(430, MIDDLE + 14, "×")
    drawing.box(430, MIDDLE - 26, "tanh", PLAIN, width=44)
    for x in (110, 190, 370):
        drawing.fed(x, "σ")
    drawing.fed(280, "tanh", CANDIDATE)


def _min_gru(drawing: Drawing) -> None:
    drawing.x_rail(350)
    _mixed(drawing, 200, 350, "u_t")
    drawing.alone(200, BOX, "σ")
    drawing.alone(350, BOX, "W_xn", CANDIDATE)


def _min_lstm(drawing: Drawing) -> None:
    low, share = BOX + 40, BOX - 10
    drawing.x_rail(390)
    _mixed(drawing, 240, 390, "")
    drawing.line((240, low - 20), (240, share + 13))
    drawing.line((130, low - 20), (130, share), (207, share))
    drawing.text(138, share - 12, "f_t", "start")
    drawing.text(248, share + 20, "u_t", "start")
    drawing.line((390, low - 20), (390, BOX - 21), arrow=False)
    drawing.alone(130, low, "σ")
    drawing.alone(240, low, "σ")
    drawing.alone(390, low, "W_xn", CANDIDATE)
    drawing.box(240, share, "u/(u+f)", PLAIN, width=64)


def _ind_rnn(drawing: Drawing) -> None:
    drawing.x_rail(250)
    drawing.state(TOP, "h_{t-1}", "h_t")
    drawing.line((250, BOX - 20), (250, TOP + 13))
    drawing.alone(250, BOX, "W_xh", CANDIDATE)
    drawing.box(150, TOP, "×u", PLAIN, width=44)
    drawing.op(250, TOP, "+")
    drawing.box(350, TOP, "relu", PLAIN, width=44)


_CELLS: dict[str, Callable[[Drawing], None]] = {
    "rnn": _rnn,
    "simplified-gru": _simplified_gru,
    "mgu": _mgu,
    "gru": lambda drawing: _gru(drawing, "before"),
    "gru-after": lambda drawing: _gru(drawing, "after"),
    "lstm": _lstm,
    "mingru": _min_gru,
    "minlstm": _min_lstm,
    "indrnn": _ind_rnn,
}


def drawings() -> dict[Path, str]:
    """The files and what is in them, one for each cell of the registry.

    Raises:
        KeyError: A cell has no drawing here.

    """
    found = {}
    for name in CELLS:
        drawing = Drawing()
        _CELLS[name](drawing)
        found[FOLDER / f"{name}.svg"] = drawing.svg()
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in drawings().items():
        file.write_text(text, encoding="utf-8")

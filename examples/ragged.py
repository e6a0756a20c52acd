# SPDX-License-Identifier: Apache-2.0
"""Code or prose? Lines of Python's library, of any length, told apart letter by letter."""

import ast
import random
from pathlib import Path

import numpy as np

import rnnkern as rk

lines = []  # each with True where it is prose, inside a docstring
for name in ("argparse", "ast", "calendar", "configparser", "inspect", "optparse", "textwrap"):
    source = Path(ast.__file__).with_name(f"{name}.py").read_text("utf-8")
    texts = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Expr)]
    texts = [text for text in texts if isinstance(text.value, ast.Constant)]
    prose = {n for text in texts for n in range(text.lineno, text.end_lineno + 1)}
    for number, line in enumerate(source.splitlines(), start=1):
        line = line.replace('"""', "").strip()
        if len(line) > 5 and not line.startswith("#"):
            lines.append(
                (np.frombuffer(line.encode("ascii", "replace"), np.uint8), number in prose)
            )
random.Random(0).shuffle(lines)
x, targets = [line for line, _ in lines], np.array([is_prose for _, is_prose in lines], int)

train = rk.batches(x[1000:], targets[1000:], 64, shuffle=True, seed=0, bucket=8)
model = rk.Model(
    rk.GRU(16, 32, bidirectional=True, seed=0),
    rk.Linear(64, 2, seed=1),
    embedding=rk.Embedding(128, 16, seed=2),
    readout="mean",
)
rk.fit(model, train, epochs=4, optimizer=rk.Adam(model, lr=0.01))

letters, lengths = rk.pad(x[:1000])
right = (model.predict(letters, lengths).argmax(axis=1) == targets[:1000]).mean()
print(f"{right:.1%} of 1000 unseen lines told rightly; {1 - targets.mean():.0%} of all are code")

assert right > 0.95, right

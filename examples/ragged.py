# SPDX-License-Identifier: Apache-2.0
"""Code or prose? Lines of Python's library, of any length, told apart letter by letter."""

import ast
import inspect
import random
from importlib import import_module

import numpy as np

import rnnkern as rk

found = {}  # lines, each with 1 where it is prose, inside a docstring
for name in ("argparse", "ast", "calendar", "configparser", "inspect", "optparse", "textwrap"):
    source = inspect.getsource(import_module(name))
    strings = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Expr)]
    strings = [n.value.value for n in strings if isinstance(n.value, ast.Constant)]
    prose = {line.strip() for text in strings for line in str(text).splitlines()}
    lines = {line.replace('"""', "").strip() for line in source.splitlines()}
    found |= {line: int(line in prose) for line in lines if len(line) > 5 and line[0] != "#"}
rows = random.Random(0).sample(sorted(found.items()), len(found))
x = [np.frombuffer(line.encode("ascii", "replace"), np.uint8) for line, _ in rows]
targets = np.array([is_prose for _, is_prose in rows])

train = rk.batches(x[1000:], targets[1000:], 64, shuffle=True, seed=0, bucket=8)
layer, head = rk.GRU(16, 32, bidirectional=True, seed=0), rk.Linear(64, 2, seed=1)
model = rk.Model(layer, head, embedding=rk.Embedding(128, 16, seed=2), readout="mean")
rk.fit(model, train, epochs=4, optimizer=rk.Adam(model, lr=0.01))

right = (model.predict(x[:1000]).argmax(axis=1) == targets[:1000]).mean()
print(f"{right:.1%} of 1000 unseen lines told rightly; {1 - targets.mean():.0%} of all are code")

assert right > 0.95, right

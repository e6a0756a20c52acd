# SPDX-License-Identifier: Apache-2.0
"""Code or prose? Lines of Python's library, of any length, told apart letter by letter."""

import argparse
import ast
import calendar
import datetime
import inspect
import logging
import pathlib
import random
import textwrap
import unittest.mock

import numpy as np

import rnnkern as rk

lines = []  # each with 1 where it is prose, 0 where it is code
for module in argparse, ast, calendar, datetime, inspect, logging, pathlib, textwrap, unittest.mock:
    source = inspect.getsource(module)
    prose = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            prose.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for number, line in enumerate(source.splitlines(), start=1):
        line = line.replace('"""', "").strip()
        if len(line) > 5 and not line.startswith("#"):
            lines.append((line, int(number in prose)))
random.Random(0).shuffle(lines)
x = [np.frombuffer(line.encode("ascii", "replace"), np.uint8) for line, _ in lines]
targets = np.array([is_prose for _, is_prose in lines])

train = rk.batches(x[1000:], targets[1000:], 64, shuffle=True, seed=0, bucket=8)
asked = rk.batches(x[:1000], targets[:1000], 500)
model = rk.Model(
    rk.GRU(16, 32, bidirectional=True, seed=0),
    rk.Linear(64, 2, seed=1),
    embedding=rk.Embedding(128, 16, seed=2),
    readout="mean",
)
rk.fit(model, train, epochs=4, optimizer=rk.Adam(model, lr=0.01))

right = [
    model.predict(letters, lengths).argmax(axis=1) == wanted for letters, lengths, wanted in asked
]
share = np.concatenate(right).mean()
print(f"{share:.1%} of 1000 unseen lines told rightly; {1 - targets.mean():.0%} of all are code")

assert share > 0.95, share

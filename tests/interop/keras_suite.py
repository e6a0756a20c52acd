# SPDX-License-Identifier: Apache-2.0
"""Keras' own tests of its recurrent layers, run on our classes; a program of its own, since Keras'
backend is chosen once in a process: ``KERAS_BACKEND=torch python keras_suite.py lstm_test ...``.

It prints a line of JSON: tests run, loops that ran on our kernels, and what failed.
"""

from __future__ import annotations

import importlib
import json
import sys
import unittest
from typing import Any

import keras
from keras.src import layers

import rnnkern.keras as ours


def main() -> None:
    loops = 0

    def counted(run: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal loops
            loops += 1
            return run(*arguments)

        return call

    backend = keras.backend.backend()
    ours._BACKENDS[backend] = counted(ours._BACKENDS[backend])
    for name in ("LSTM", "GRU", "SimpleRNN"):
        setattr(layers, name, getattr(ours, name))
    suite = unittest.TestSuite(
        unittest.defaultTestLoader.loadTestsFromModule(
            importlib.import_module(f"keras.src.layers.rnn.{module}")
        )
        for module in sys.argv[1:]
    )
    result = unittest.TextTestRunner(verbosity=0).run(suite)
    failed = [
        f"{test.id()}\n{trace}"
        for test, trace in result.failures + result.errors
        if "No module named 'tensorflow'" not in trace
    ]
    skipped = len(result.skipped)
    print(json.dumps({"run": result.testsRun - skipped, "loops": loops, "failed": failed}))


if __name__ == "__main__":
    main()

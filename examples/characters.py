# SPDX-License-Identifier: Apache-2.0
"""A character language model of Python's own manual: from each letter it guesses the next."""

from pydoc_data.topics import topics

import numpy as np

import rnnkern as rk

# The text as numbers 0..127, cut into rows of 100 letters and the one after each of them.
text = "\n".join(topics.values()).encode("ascii", "replace")
codes = np.frombuffer(text, np.uint8).astype(np.int64)
rows = codes[: len(codes) // 101 * 101].reshape(-1, 101)
x, targets = rows[:, :-1], rows[:, 1:]
train = rk.batches(x[:-200], targets[:-200], 32, shuffle=True, seed=0)
valid = rk.batches(x[-200:], targets[-200:], 100)

model = rk.Model(rk.LSTM(128, 128, forget_bias=1.0, seed=0), rk.Linear(128, 128, seed=1))
adam = rk.Adam(model, lr=0.01)
history = rk.fit(model, train, valid=valid, epochs=2, optimizer=adam)
bits = history["valid"][-1] / np.log(2)
print(f"{bits:.2f} bits a letter; equally likely ones would take 7")

# It writes: what it draws it reads next.
begun = np.frombuffer(b"The ", np.uint8)
written = model.generate(begun, 200, temperature=0.7, seed=0)  # below 1: rather the likely ones
print("The " + "".join(map(chr, written)))

assert bits < 2.8, bits

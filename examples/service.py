# SPDX-License-Identifier: Apache-2.0
"""A service: a thousand clients that come and go type, and one stream guesses their next letters.

Each tick takes one step for all who typed, in one call. What a client gets is, to the last bit,
what it would get alone.
"""

from pydoc_data.topics import topics

import numpy as np

import rnnkern as rk

text = "\n".join(topics.values()).encode("ascii", "replace")
codes = np.frombuffer(text, np.uint8).astype(np.int64)
rows = codes[: len(codes) // 101 * 101].reshape(-1, 101)
model = rk.Model(rk.GRU(128, 64, seed=0), rk.Linear(64, 128, seed=1))
train = rk.batches(rows[:, :-1], rows[:, 1:], 32, shuffle=True, seed=0)
rk.fit(model, train, epochs=1, optimizer=rk.Adam(model, lr=0.01))

# A row of the stream for each client, who types from the text: where it began, and where it is.
stream, rng = model.stream(batch=1000), np.random.default_rng(0)
begun = rng.integers(len(codes) - 201, size=1000)
at, answers, hits = begun.copy(), np.zeros((1000, 128), np.float32), []
for _ in range(200):
    left = np.flatnonzero(rng.random(1000) < 0.02)
    stream.reset(left)  # whoever joins in their place begins anew
    at[left] = begun[left] = rng.integers(len(codes) - 201, size=len(left))
    typed = rng.random(1000) < 0.7
    guesses = stream.step(codes[at], mask=typed)
    at[typed] += 1
    answers[typed] = guesses[typed]
    hits.extend(guesses[typed].argmax(axis=1) == codes[at[typed]])
print(f"{len(hits)} letters of 1000 clients; {np.mean(hits):.0%} of the next ones guessed")

assert np.mean(hits) > 0.35, np.mean(hits)
for row in np.flatnonzero(at > begun)[:20]:  # alone, from the first letter on
    assert (model.predict(codes[begun[row] : at[row], None])[-1, 0] == answers[row]).all()

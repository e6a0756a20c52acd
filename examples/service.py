# SPDX-License-Identifier: Apache-2.0
"""A service: a thousand clients that come and go type, and one stream guesses their next letters.

Each tick takes one step for all who typed, in one call. What a client gets is, to the last bit,
what it would get alone.
"""

from pydoc_data.topics import topics

import numpy as np

import rnnkern as rk

CLIENTS = 1000
text = "\n".join(topics.values()).encode("ascii", "replace")
codes = np.frombuffer(text, np.uint8).astype(np.int64)
rows = codes[: len(codes) // 101 * 101].reshape(-1, 101)
model = rk.Model(rk.GRU(128, 64, seed=0), rk.Linear(64, 128, seed=1))
train = rk.batches(rows[:, :-1], rows[:, 1:], 32, shuffle=True, seed=0)
rk.fit(model, train, epochs=1, optimizer=rk.Adam(model, lr=0.01))


class Service:
    """A row of the stream for each client; rows that are free wait for the next one."""

    def __init__(self):
        self.stream = model.stream(batch=CLIENTS)
        self.free = list(range(CLIENTS))

    def join(self):
        row = self.free.pop()
        self.stream.reset([row])
        return row

    def leave(self, row):
        self.free.append(row)

    def tick(self, typed):
        """``typed`` has a letter for each client that typed one: their guesses, (N, 128)."""
        clients = list(typed)
        letters, mask = np.zeros(CLIENTS, np.int64), np.zeros(CLIENTS, bool)
        letters[clients], mask[clients] = list(typed.values()), True
        return dict(zip(clients, self.stream.step(letters, mask=mask)[clients], strict=True))


service, rng = Service(), np.random.default_rng(0)
typing, ticks, right, steps = {}, 200, 0, 0  # row -> where in the text it is, and from where
for _ in range(ticks):
    for row in [row for row in typing if rng.random() < 0.02]:  # some leave
        service.leave(row)
        del typing[row]
    while service.free and rng.random() < 0.98:  # and others join
        start = int(rng.integers(len(codes) - ticks - 1))
        typing[service.join()] = [start, start]
    typed = {row: codes[at] for row, (at, _) in typing.items() if rng.random() < 0.7}
    for row, logits in service.tick(typed).items():
        typing[row][0] += 1
        right += logits.argmax() == codes[typing[row][0]]
        steps += 1
print(f"{steps} letters of up to {CLIENTS} clients; {right / steps:.0%} of the next ones guessed")

assert right / steps > 0.35, right / steps
last = service.stream.state[0]
for row in list(typing)[:20]:  # alone, from the first letter on
    at, start = typing[row]
    _, state = model(codes[start:at, None])
    assert at == start or (state[0, 0] == last[row]).all()

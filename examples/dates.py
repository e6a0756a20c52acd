# SPDX-License-Identifier: Apache-2.0
"""Dates in many forms are written in one: an encoder reads "3 March 2021", a decoder writes it."""

import datetime
import random

import numpy as np

import rnnkern as rk

FORMS = "%d %B %Y", "%B %d, %Y", "%a %d %b %Y", "%d/%m/%Y", "%A, %d. %B %Y", "%b %d %Y"
DIGITS, BEGIN, END = "0123456789-", 11, 12

days = random.Random(0).sample(
    range(datetime.date(1950, 1, 1).toordinal(), datetime.date(2050, 1, 1).toordinal()), 12_000
)
dates = [datetime.date.fromordinal(day) for day in days]
forms = [date.strftime(random.Random(i).choice(FORMS)) for i, date in enumerate(dates)]
x = [np.frombuffer(form.encode(), np.uint8).astype(np.int64) for form in forms]
answers = [np.array([DIGITS.index(c) for c in date.isoformat()]) for date in dates]

train = rk.batches(x[1000:], answers[1000:], 64, shuffle=True, seed=0, target_pad=END)
model = rk.Seq2Seq(128, 13, 64, bos=BEGIN, eos=END, cell="GRU", bidirectional=True, seed=0)
rk.fit(model, train, epochs=5, optimizer=rk.Adam(model, lr=0.01))

tokens, lengths = model.greedy(x[:1000])
answers = rk.unpad(tokens, lengths)
written = ["".join(DIGITS[t] if t < 11 else "?" for t in answer) for answer in answers]
for form, answer in zip(forms[:4], written[:4], strict=True):
    print(f"{form:>28} -> {answer}")
right = np.mean([w == str(date) for w, date in zip(written, dates[:1000], strict=True)])
print(f"{right:.1%} of 1000 unseen dates are written rightly")
assert right > 0.95, right

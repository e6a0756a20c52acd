# SPDX-License-Identifier: Apache-2.0
"""From ONNX: a trained detector of voices, convolutions and an LSTM, listens piece by piece.

The model is Silero VAD, which the package silero-vad brings. What it hears here is made of
numbers: noise, and in it the vowels of a voice. ONNX Runtime says the same.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime

import rnnkern as rk

RATE, PIECE, BEFORE = 16_000, 512, 64  # samples: of a second, of a piece, and heard once more
VOWELS = (730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480)  # resonances


def voice(seconds):
    """A throat at 120 Hz or so, whose overtones are loud near the resonances of its vowel."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = np.cumsum(120 + 20 * np.sin(4 * t)) / RATE
    sound = np.zeros_like(t)
    for overtone in range(1, 30):
        distance = overtone * 120 - np.array(VOWELS)
        loud = (1 / (1 + (distance / 60) ** 2)).sum(axis=1)  # of every vowel
        sound += loud[(5 * t).astype(int) % 4] * np.sin(2 * np.pi * overtone * phase)
    return 0.1 * sound * np.abs(np.sin(5 * np.pi * t))  # five syllables a second


rng = np.random.default_rng(0)
audio = 0.003 * rng.standard_normal(6 * RATE)
audio[2 * RATE : 4 * RATE] += voice(2)
pieces = audio[: len(audio) // PIECE * PIECE].reshape(-1, PIECE)
before = np.concatenate([np.zeros((1, BEFORE)), pieces[:-1, -BEFORE:]])
x = np.concatenate([before, pieces], axis=1).astype(np.float32)

path = Path(find_spec("silero_vad").origin).parent / "data" / "silero_vad_16k_sequence.onnx"
model = rk.from_onnx(path)
print(model.layers)
begin = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
heard, state = [], begin
for piece in x:  # as it comes from a microphone
    results = model({"input": piece[None], **state})
    heard.append(results["speech_probs"].item())
    state = {"h": results["hn"], "c": results["cn"]}
marks = "".join("#" if p > 0.5 else "." for p in heard)
print(f"{marks}\n{'0 s':63}{'2 s':62}4 s")

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(want,) = session.run(["speech_probs"], {"input": x, **begin})
difference = np.abs(heard - want).max()
print(f"differs from ONNX Runtime by {difference:.1e} at most")
assert difference < 1e-5, difference
assert "#" not in marks[:60], marks
assert marks[66:125].count("#") > 40, marks

# SPDX-License-Identifier: Apache-2.0
"""From PyTorch: how English words sound, by GRUs that others have trained there.

The weights are those that the package g2p-en brings. A module of PyTorch that has them, and the
layer of rnnkern that is made of it, write down the sounds of the same words.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import rnnkern as rk

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
BEGIN, END, SOUNDS = 2, 3, ["<pad>", "<unk>", "<s>", "</s>"]
several = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH"
for sound in several.split():  # those of vowels say how they are stressed
    SOUNDS += [sound + stress for stress in "012"] if sound[0] in "AEIOU" else [sound]
SOUNDS += ["UW", "UW0", "UW1", "UW2", "V", "W", "Y", "Z", "ZH"]

file = np.load(Path(find_spec("g2p_en").origin).parent / "checkpoint20.npz")


def trained(part):
    """A module with the weights of the encoder or the decoder."""
    module = torch.nn.GRU(256, 256)
    weights = [torch.from_numpy(file[f"{part}_{w}"]) for w in ("w_ih", "w_hh", "b_ih", "b_hh")]
    module.load_state_dict(dict(zip(module.state_dict(), weights, strict=True)))
    return module


words = ["recurrent", "kernel", "gradient", "adder", "torch", "silicon", "numpyesque"]
x, lengths = rk.pad([np.array([LETTERS.index(c) for c in [*word, "</s>"]]) for word in words])
x = file["enc_emb"][x]

encoder, decoder = rk.from_torch(trained("enc")), rk.from_torch(trained("dec"))
head = rk.from_torch({"weight": file["fc_w"], "bias": file["fc_b"]})
print(encoder, decoder, head)
_, state = encoder(x, None, lengths)
stream, logits, said = decoder.stream(len(words)), [], [np.full(len(words), BEGIN)]
stream.state = state
for _ in range(16):
    logits.append(head(stream.step(file["dec_emb"][said[-1]])))
    said.append(logits[-1].argmax(axis=1))
for word, row in zip(words, np.array(said[1:]).T.tolist(), strict=True):
    print(f"{word:>10} {' '.join(SOUNDS[s] for s in row[: row.index(END)])}")

# The same by PyTorch's own modules.
packed = torch.nn.utils.rnn.pack_padded_sequence(
    torch.from_numpy(x), torch.from_numpy(lengths), enforce_sorted=False
)
with torch.no_grad():
    _, h = trained("enc")(packed)
    y, _ = trained("dec")(torch.from_numpy(file["dec_emb"][said[:-1]]), h)
difference = np.abs(y.numpy() @ file["fc_w"].T + file["fc_b"] - logits).max()
print(f"logits differ from PyTorch's by {difference:.1e} at most, of {np.abs(logits).max():.0f}")
assert difference < 1e-4, difference

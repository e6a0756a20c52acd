# SPDX-License-Identifier: Apache-2.0
"""From Keras: a forecast of sunspots, trained with Keras on our kernels, then served without it.

`rnnkern.keras.accelerate` is the one line that the script of Keras needs; the file that Keras
writes becomes layers of rnnkern, which need neither Keras nor PyTorch.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # or "jax"
import keras
import numpy as np
from statsmodels.datasets import sunspots

import rnnkern as rk
import rnnkern.keras

spots = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(np.float32)  # 1700 to 2008
series = np.sqrt(spots)  # makes low and high years vary alike
mean, scale = series[:230].mean(), series[:230].std()
series = (series - mean) / scale
x = np.stack([series[year - 50 : year] for year in range(50, 309)])[..., None]
target = series[50:, None]
learned = 180  # windows until 1929

keras.utils.set_random_seed(0)
layers = [keras.layers.GRU(32, return_sequences=True, name="first")]
layers += [keras.layers.GRU(32, name="second"), keras.layers.Dense(1, name="head")]
model = keras.Sequential([keras.Input((50, 1)), *layers])
model.compile(keras.optimizers.Adam(0.003), "mse")
as_keras = model.predict(x, verbose=0)

model = rnnkern.keras.accelerate(model)
assert np.abs(model.predict(x, verbose=0) - as_keras).max() < 1e-5
model.fit(x[:learned], target[:learned], batch_size=30, epochs=25, verbose=0)
model.save("sunspots.keras")

# Elsewhere, where there is rnnkern (and h5py, which reads the file).
parts = [rk.from_keras("sunspots.keras", name) for name in ("first", "second", "head")]
print(*parts, sep="\n")
first, second, head = parts
y, h = second(first(x)[0])
forecast = head(h[0])
difference = np.abs(forecast - model.predict(x, verbose=0)).max()
print(f"differs from Keras by {difference:.1e} at most")
assert difference < 1e-5, difference

years = np.maximum(forecast[learned:, 0] * scale + mean, 0) ** 2
error = np.sqrt(np.mean((years - spots[50 + learned :]) ** 2))
as_before = np.sqrt(np.mean((spots[49 + learned : -1] - spots[50 + learned :]) ** 2))
print(f"root mean squared error {error:.1f} spots; 'as in the year before' has {as_before:.1f}")
assert error < 0.85 * as_before, (error, as_before)

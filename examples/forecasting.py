# SPDX-License-Identifier: Apache-2.0
"""Forecasting sunspots: a GRU reads fifty years and says what the next one brings."""

import numpy as np
from statsmodels.datasets import sunspots

import rnnkern as rk

spots = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(np.float32)  # 1700 to 2008
series = np.sqrt(spots)  # makes low and high years vary alike
mean, scale = series[:230].mean(), series[:230].std()
series = (series - mean) / scale


def windows(first, last):
    """The fifty years before each of these years, and those years: (N, 50, 1) and (N, 1)."""
    x = np.stack([series[year - 50 : year] for year in range(first, last)])
    return x[..., None], series[first:last, None]


model = rk.Model(rk.GRU(1, 32, seed=0), rk.Linear(32, 1, seed=1), readout="last", loss="mse")
train = rk.batches(*windows(50, 200), 30, shuffle=True, seed=0)
valid = rk.batches(*windows(200, 230), 30)
history = rk.fit(
    model, train, valid=valid, epochs=200, patience=40, optimizer=rk.Adam(model, lr=0.01)
)

x, _ = windows(230, 309)  # 1930 to 2008, which nothing above has seen
forecast = np.maximum(model.predict(x, batch_first=True)[:, 0] * scale + mean, 0) ** 2
error = np.sqrt(np.mean((forecast - spots[230:]) ** 2))
as_before = np.sqrt(np.mean((spots[229:-1] - spots[230:]) ** 2))
print(f"root mean squared error {error:.1f} spots; 'as in the year before' has {as_before:.1f}")

assert error < 0.8 * as_before, (error, as_before)

# SPDX-License-Identifier: Apache-2.0
"""On a cluster: ranks that train one model, which is the one that a single process trains.

    mpiexec -n 2 python examples/cluster.py

Each rank takes its share of every batch. When they are done, the first trains alone, to compare.
"""

from pydoc_data.topics import topics

import numpy as np
from mpi4py import MPI

import rnnkern as rk

text = "\n".join(topics.values()).encode("ascii", "replace")
codes = np.frombuffer(text, np.uint8).astype(np.int64)
rows = codes[: len(codes) // 65 * 65].reshape(-1, 65)


def trained(comm):
    """A language model of Python's own manual, by all ranks of comm, or by this one alone."""
    model = rk.Model(rk.GRU(128, 64, seed=0), rk.Linear(64, 128, seed=1))
    train = rk.batches(rows[:-200, :-1], rows[:-200, 1:], 64, shuffle=True, seed=0)
    valid = rk.batches(rows[-200:, :-1], rows[-200:, 1:], 100)
    adam = rk.Adam(model, lr=0.01)
    history = rk.fit(model, train, valid=valid, epochs=1, optimizer=adam, comm=comm)
    return history["valid"][-1] / np.log(2), model


bits, model = trained(MPI.COMM_WORLD)
ranks = MPI.COMM_WORLD.Get_size()
if MPI.COMM_WORLD.Get_rank() == 0:
    bits_alone, alone = trained(None)
    difference = max(abs(model.params[name] - a).max() for name, a in alone.params.items())
    print(f"{bits:.4f} bits a letter by {ranks} ranks, {bits_alone:.4f} by one process alone;")
    print(f"a parameter differs by {difference:.1e} at most")
    assert bits < 3, bits
    assert difference < 1e-3, difference

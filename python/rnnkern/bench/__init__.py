# SPDX-License-Identifier: Apache-2.0
"""rnnkern against its peers on this machine: ``rnnkern bench``."""

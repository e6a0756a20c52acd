"""rnnkern against its peers on this machine: ``rnnkern bench``."""

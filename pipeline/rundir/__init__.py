"""The run directory: stage folders, fingerprints, locks, and the processes that share it."""

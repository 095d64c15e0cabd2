"""A run's directory: lock, stage folders, fingerprints and records."""

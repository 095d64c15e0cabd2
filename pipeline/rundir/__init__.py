"""A run's directory: its lock, its stages' folders and fingerprints, names of files, and what a stage is given."""

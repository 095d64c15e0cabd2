"""A run's settings, tasks, presets and metrics."""

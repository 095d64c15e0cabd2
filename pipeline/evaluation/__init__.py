"""Evaluate a run's models: answers, baselines, second models and thresholds."""

"""Answers, second models and thresholds."""

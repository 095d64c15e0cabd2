"""Classifiers as transformers has them: found, opened, cut, and read by their first token or by the mean of all."""

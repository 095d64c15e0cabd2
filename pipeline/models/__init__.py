"""Transformers classifiers: opened, cut and read."""

"""Texts to probabilities with ONNX Runtime. Imports no web code."""

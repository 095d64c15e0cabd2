"""Texts to probabilities with ONNX Runtime: tokenising, padding, forward passes. Imports nothing of the web."""

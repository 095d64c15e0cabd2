"""Texts to probabilities with ONNX Runtime: tokenising, padding, one forward pass. Nothing of the web."""

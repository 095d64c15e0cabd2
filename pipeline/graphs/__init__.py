"""ONNX graphs: export, int8, fp16, parity, batch invariance."""

"""Runs an artifact: the engine, the HTTP service around it, and bulk scoring. No torch, no transformers."""

import os

# ONNX Runtime reports its use unless it is told not to, before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

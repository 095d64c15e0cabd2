"""Runs an artifact. Needs neither torch nor transformers."""

import os

# Must be set before onnxruntime is imported, or it sends usage data.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

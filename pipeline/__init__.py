import os

# Set before its import, or ONNX Runtime reports its use.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

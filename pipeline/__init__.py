import os

# Otherwise ONNX Runtime reports its use.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

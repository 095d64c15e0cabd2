import os

# ONNX Runtime reads this at its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

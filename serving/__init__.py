import os

# ONNX Runtime reports its use unless it is told not to, before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

VERSION = "0.1.0"  # of the project: a Bento holds the code and has no installed package to ask

"""Tries for `kdc doctor` what may hang, crash or print. The last line of stdout is a JSON object.

Command: `python tools/doctor/probes.py providers | provider NAME | torch | hub URL SECONDS`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_ROUNDS = 5  # of timing

# y = x @ x, x of shape (2, 2), opset 13. A matrix product makes a provider load its libraries.
TINY_MODEL = (
    b'\x08\x08\x12\x00:@\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x01gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08'
    b"\n\x02\x08\x02\n\x02\x08\x02b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02B\x04\n\x00\x10\r"
)


def probe_providers() -> dict[str, Any]:
    """Lists providers, which may not work."""
    import onnxruntime

    return {"providers": onnxruntime.get_available_providers()}


def probe_provider(name: str) -> dict[str, Any]:
    """Runs it: ONNX Runtime falls back to the CPU without an error."""
    import numpy as np
    import onnxruntime

    if name == "CUDAExecutionProvider":
        onnxruntime.preload_dlls()  # works only before the first session
    session = onnxruntime.InferenceSession(TINY_MODEL, providers=[name])
    if (actual := session.get_providers()[0]) != name:
        return {"reason": f"fell back to {actual}"}
    product = session.run(None, {"x": np.array([[1, 2], [3, 4]], dtype=np.float32)})[0].tolist()
    if product != [[7, 10], [15, 22]]:
        return {"reason": f"computed {product} instead of [[7, 10], [15, 22]]"}
    return {"starts": True}


def probe_torch() -> dict[str, Any]:
    """CUDA build ("" for CPUs), devices, and without a GPU the CPU's training speeds."""
    import torch

    available = torch.cuda.is_available()
    return {
        "cuda_build": torch.version.cuda or "",
        "cuda": available,
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "training": {} if available else _training_speeds(),
    }


def _training_speeds() -> dict[str, float]:
    import torch

    layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, batch_first=True)
    rows = torch.randn(16, 32, 384)
    settings = [(threads, bf16) for threads in sorted({torch.get_num_threads(), 1}) for bf16 in (False, True)]
    seconds: dict[str, list[float]] = {}
    for round_ in range(_ROUNDS + 1):
        for threads, bf16 in settings:
            torch.set_num_threads(threads)
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = layer(rows).float().square().mean()
            loss.backward()
            if round_:  # the first allocates memory
                name = f"{threads} thread{'s' if threads > 1 else ''}, {'bf16' if bf16 else 'fp32'}"
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    return {name: round(1 / median(times), 1) for name, times in seconds.items()}


def probe_hub(url: str, timeout_s: str) -> dict[str, Any]:
    import httpx2

    try:
        status = httpx2.head(url, timeout=float(timeout_s), follow_redirects=True).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return {"reachable": False, "detail": str(error)}
    # 403, 407 and 5xx come from a proxy, or a gateway with nothing behind it.
    return {"reachable": status < 500 and status not in (403, 407), "detail": f"HTTP {status}"}


if __name__ == "__main__":
    question, *details = sys.argv[1:]
    probe: Callable[..., dict[str, Any]] = globals()[f"probe_{question}"]
    print("\n" + json.dumps(probe(*details)))

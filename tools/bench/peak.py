"""The share of the CPU's peak that a model reaches: the time of its matrix products at the speed of a large product,
divided by the time of a pass."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.pipeline.quality.products import operations, seconds_alone
from kdc.serving.engine.long_texts import Tokens
from kdc.serving.engine.tokenizing import pad
from kdc.tools.bench.result import Loaded

Share = Callable[[int, int, float], float | None]


def peak_share(folder: Path, loaded: Loaded) -> Share | None:
    """A function from rows, tokens a row and seconds of a pass to the share of the peak, 0 to 1.

    The function measures the peak at each call, because a busy machine slows down both. It returns None for rows in
    windows.

    Returns:
        None on a GPU, in torch, for variants other than int8 and fp32, and without the package onnx.
    """
    if loaded.on != CPU_PROVIDER or loaded.variant not in ("int8", "fp32") or find_spec("onnx") is None:
        return None
    manifest = load_manifest(folder, verify=False)
    file = folder / manifest.variants[loaded.variant].file  # type: ignore[index]

    @cache
    def count(rows: int, tokens: int) -> dict[str, int]:
        return operations(file, pad([Tokens([1] * tokens, [0] * tokens)] * rows, manifest.tokenizer))

    def share(rows: int, tokens: int, seconds: float) -> float | None:
        if tokens > manifest.tokenizer.max_length:
            return None
        return seconds_alone(count(rows, tokens), loaded.threads) / seconds

    return share

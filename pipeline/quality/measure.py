"""Seconds and bytes: latency and throughput of several models in turns, and peak memory in a process of its own.

As a program (`python -m kdc.pipeline.quality.measure`) it is that process: it reads a JSON request on stdin, loads
one model, answers the texts, and prints its peak resident memory in bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdc.artifact.manifest import TokenizerInfo
from kdc.common.errors import KdcError
from kdc.common.memory import own_peak_memory_bytes


def time_in_turns(
    answers: Mapping[str, Callable[[list[Any]], Any]],
    texts: list[Any],
    *,
    latency_rows: int,
    throughput_rows: int,
    rounds: int,
    batch_size: int = 32,
) -> dict[str, dict[str, float]]:
    """Time models on the same texts, one after the other in each round, so that noise of the machine hits all alike.

    Args:
        answers: name to a function of texts.
        texts: at least one; repeated where they are too few.
        latency_rows: texts answered one by one.
        throughput_rows: texts answered in batches.
        rounds: medians over these are kept.
        batch_size: rows a batch.

    Returns:
        For each name latency_p50_ms, latency_p95_ms (batch 1), rows_per_second (batches of `batch_size`).
    """
    single = [texts[index % len(texts)] for index in range(latency_rows)]
    many = [texts[index % len(texts)] for index in range(throughput_rows)]
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in answers}
    for answer in answers.values():
        answer(many[:batch_size])  # the first call allocates
    for _ in range(rounds):
        for name, answer in answers.items():
            each = [_seconds(answer, [text]) for text in single]
            batches = [many[start : start + batch_size] for start in range(0, len(many), batch_size)]
            total = sum(_seconds(answer, batch) for batch in batches)
            p50, p95 = np.percentile(each, (50, 95))
            measured[name].append((1e3 * float(p50), 1e3 * float(p95), len(many) / total))
    names = ("latency_p50_ms", "latency_p95_ms", "rows_per_second")
    return {
        name: {
            key: round(float(np.median(values)), 3) for key, values in zip(names, zip(*rows, strict=True), strict=True)
        }
        for name, rows in measured.items()
    }


def _seconds(answer: Callable[[list[Any]], Any], texts: list[Any]) -> float:
    began = time.perf_counter()
    answer(texts)
    return time.perf_counter() - began


def peak_memory_bytes(
    texts: list[Any],
    *,
    torch_model: Path | None = None,
    tokenizer: TokenizerInfo | None = None,
    onnx_file: Path | None = None,
    export: Path | None = None,
    task: Any = None,
) -> int:
    """Peak resident memory of a fresh process that loads one model and answers `texts` in one batch.

    Args:
        texts: texts or pairs.
        torch_model: a `save_pretrained` folder, with its `tokenizer`; or
        onnx_file: an ONNX file, with the `export` stage's folder and the task.

    Raises:
        KdcError: the process failed.
    """
    request: dict[str, Any] = {"texts": texts}
    if torch_model is not None and tokenizer is not None:
        request |= {"torch_model": str(torch_model.resolve()), "tokenizer": tokenizer.model_dump()}
    else:
        from kdc.pipeline.data.served import task_info

        request |= {"onnx_file": str(onnx_file), "export": str(export), "task": task_info(task).model_dump()}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "kdc.pipeline.quality.measure"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        raise KdcError("cannot measure a model's memory", given=done.stderr.strip()[-500:], remedy="see `kdc doctor`")
    return int(done.stdout.strip().splitlines()[-1])


def _main() -> None:
    request = json.load(sys.stdin)
    texts = [text if isinstance(text, str) else tuple(text) for text in request["texts"]]
    if "torch_model" in request:
        _answer_with_torch(Path(request["torch_model"]), TokenizerInfo.model_validate(request["tokenizer"]), texts)
    else:
        _answer_with_engine(Path(request["onnx_file"]), Path(request["export"]), request["task"], texts)
    sys.stdout.write(f"{own_peak_memory_bytes()}\n")


def _answer_with_torch(folder: Path, info: TokenizerInfo, texts: list[Any]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from kdc.serving.engine.tokenizing import RowTokenizer, pad

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    feeds = pad(RowTokenizer.read(folder / "tokenizer.json", info).encode(texts), info)
    with torch.inference_mode():
        model(**{name: torch.from_numpy(values) for name, values in feeds.items()})


def _answer_with_engine(onnx_file: Path, export: Path, task: dict[str, Any], texts: list[Any]) -> None:
    from kdc.artifact.manifest import TaskInfo
    from kdc.serving.engine.engine import Engine

    info = TokenizerInfo.model_validate_json((export / "tokenizer_info.json").read_text(encoding="utf-8"))
    engine = Engine.from_files(
        onnx_file, export / "tokenizer.json", task=TaskInfo.model_validate(task), tokenizer_info=info
    )
    engine.predict(texts, batch_size=len(texts))


if __name__ == "__main__":
    _main()

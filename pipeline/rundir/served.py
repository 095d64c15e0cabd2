"""What the serving half needs to know of a run: the bridge from a task and a tokenizer to the artifact's contract."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import Device, TaskInfo, TokenizerInfo
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.rundir.context import Run
from kdc.serving.engine.engine import Engine, Text

TOKENIZER_INFO = "tokenizer_info.json"


def task_info(task: Task) -> TaskInfo:
    """The task as the artifact describes it."""
    return TaskInfo(
        name=task.name,
        kind=task.kind,
        text=task.text,
        text_pair=task.text_pair,
        labels=task.labels,
        metric=task.metrics[0],
        center=task.center,
        spread=task.spread,
    )


def tokenizer_info(tokenizer: Any, *, max_length: int, token_type_ids: bool) -> TokenizerInfo:
    """How rows are cut and padded, from a fast tokenizer."""
    return TokenizerInfo(
        max_length=max_length,
        pad_id=tokenizer.pad_token_id,
        pad_token=str(tokenizer.pad_token),
        token_type_ids=token_type_ids,
        pad_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )


def open_engine(run: Run, onnx_file: Path, *, temperature: float = 1.0, device: Device = "cpu") -> Engine:
    """The serving engine over one ONNX file of the run, so that what is measured is what will serve."""
    export = run.folder("export")
    info = TokenizerInfo.model_validate(json.loads((export / TOKENIZER_INFO).read_text(encoding="utf-8")))
    return Engine.from_files(
        onnx_file,
        export / "tokenizer.json",
        task=task_info(run.data().task),
        tokenizer_info=info,
        temperature=temperature,
        device=device,
    )


def texts_of(rows: Any) -> list[Text]:
    """Rows of a split as the engine takes them: texts, or pairs of texts."""
    first = rows["text"][:]
    return list(zip(first, rows["text_pair"][:], strict=True)) if "text_pair" in rows.column_names else list(first)


def digest(text: Text) -> bytes:
    """A row's fingerprint, as `evaluation.npz` has it: SHA-256 of its text, or of both with a NUL between them."""
    return hashlib.sha256("\0".join([text] if isinstance(text, str) else text).encode()).digest()

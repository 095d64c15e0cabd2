"""What the serving half needs to know of a task, a tokenizer and rows: the bridge to the artifact's manifest."""

from __future__ import annotations

import hashlib
from typing import Any

from kdc.artifact.manifest import TaskInfo, TokenizerInfo
from kdc.pipeline.config.tasks import Task
from kdc.serving.engine.tokenizing import Text


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


def texts_of(rows: Any) -> list[Text]:
    """Rows of a split as the engine takes them: texts, or pairs of texts."""
    first = rows["text"][:]
    return list(zip(first, rows["text_pair"][:], strict=True)) if "text_pair" in rows.column_names else list(first)


def digest(text: Text) -> bytes:
    """A row's fingerprint, as `evaluation.npz` has it: SHA-256 of its text, or of both with a NUL between them."""
    return hashlib.sha256("\0".join([text] if isinstance(text, str) else text).encode()).digest()

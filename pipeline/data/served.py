"""Hands tasks, tokenizers and rows over to the serving half, in the forms of the artifact and the engine."""

from __future__ import annotations

import hashlib
from typing import Any

from kdc.artifact.manifest import TaskBase, TaskInfo, TokenizerInfo
from kdc.pipeline.config.tasks import Task
from kdc.serving.engine.tokenizing import Text


def task_info(task: Task) -> TaskInfo:
    """The task as the artifact describes it."""
    shared = {name: getattr(task, name) for name in TaskBase.model_fields}
    return TaskInfo(**shared, metric=task.metrics[0])


def tokenizer_info(tokenizer: Any, *, max_length: int, token_type_ids: bool) -> TokenizerInfo:
    """How a fast tokenizer cuts and pads rows, as the artifact describes it."""
    return TokenizerInfo(
        max_length=max_length,
        pad_id=tokenizer.pad_token_id,
        pad_token=str(tokenizer.pad_token),
        token_type_ids=token_type_ids,
        pad_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )


def texts_of(rows: Any) -> list[Text]:
    """The rows of a split as the engine takes them: texts, or pairs of texts."""
    first = rows["text"][:]
    return list(zip(first, rows["text_pair"][:], strict=True)) if "text_pair" in rows.column_names else list(first)


def digest(text: Text) -> bytes:
    """The fingerprint of a row in `evaluation.npz`: SHA-256 of its text, or of both texts with a NUL between them."""
    return hashlib.sha256("\0".join([text] if isinstance(text, str) else text).encode()).digest()

"""Compare an artifact with its teacher once more, on rows at hand: those of its own evaluation need no teacher."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.terms import Contract, Quality
from kdc.artifact.manifest import Manifest, TaskInfo
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.tasks import Task, custom_task
from kdc.pipeline.data.prepared import read_labelled
from kdc.pipeline.data.served import digest, tokenizer_info
from kdc.pipeline.quality.comparison import compare
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import RowTokenizer, Text, pad

_SEED = 0
_BATCH = 32
_KEPT = "evaluation.npz"
_MOST_BYTES = 1 << 30  # unpacked: tens of millions of rows
_REMAKE = "copy the artifact again from where it came, or add --teacher PATH"


def compare_again(
    artifact: Path,
    engine: Engine,
    contract: Contract,
    data: Path,
    columns: Mapping[str, str | None],
    teacher: str | None,
) -> tuple[list[Text], Quality | None]:
    """The rows of a labelled file, and how the engine stands beside the teacher on them.

    Args:
        artifact: whose `evaluation.npz` keeps the teacher's logits by the rows' fingerprints.
        engine: the artifact, loaded.
        contract: no quality where it asks for no `max_drop`.
        data: the labelled file.
        columns: text, text_pair, label, separator, where they are named otherwise than in the task.
        teacher: path or id, to answer all rows; None takes what the artifact keeps, and refuses rows that it does not.

    Raises:
        InputError: the file does not fit the task, or holds such rows and no teacher is given.
    """
    info = engine.task
    task, texts, labels = read_rows_for(info, data, columns)
    if contract.limits.max_drop is None:
        return list(texts), None
    if teacher is None:
        theirs = _kept_logits(artifact, engine.manifest, texts)
    else:
        theirs = _answer(texts, task, teacher, engine.tokenizer_info.max_length)
    quality = compare(engine.logits(texts), theirs, labels, info.kind, info.metric, contract=contract, seed=_SEED)
    return list(texts), quality


def read_rows_for(
    info: TaskInfo, data: Path, columns: Mapping[str, str | None]
) -> tuple[Task, list[str] | list[tuple[str, str]], NDArray[np.generic]]:
    """The rows of a labelled file as an artifact takes them: its task with the file's columns, texts, labels.

    Args:
        info: the artifact's task.
        data: the labelled file.
        columns: text, text_pair, label, separator, where they are named otherwise than in the task.

    Raises:
        InputError: the file does not fit.
    """
    task = custom_task(
        info.name,
        columns.get("text") or info.text,
        columns.get("text_pair") or info.text_pair,
        columns.get("label") or "label",
        info.kind,
        info.labels,
    )
    texts, labels = read_labelled(data, task, separator=columns.get("separator"))
    return task, texts, np.asarray(labels)


def _kept_logits(artifact: Path, manifest: Manifest | None, texts: Sequence[Text]) -> NDArray[np.float32]:
    """The teacher's logits of rows that the artifact was evaluated on."""
    path = artifact / _KEPT
    if manifest is None or _KEPT not in manifest.files:  # else nobody has checked its hash
        raise KdcError("the artifact does not list its evaluation", given=path, remedy="add --teacher PATH")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise KdcError("the artifact's evaluation is too large", given=path, remedy="add --teacher PATH")
        with np.load(path, allow_pickle=False) as kept:
            digests, logits = kept["text_sha256"], kept["teacher_logits"]
        known = {row.tobytes(): place for place, row in enumerate(digests)}
        if logits.shape != (len(digests), manifest.task.outputs):
            raise ValueError(f"logits of shape {logits.shape}")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise KdcError("the artifact's evaluation cannot be read", given=f"{path}: {error}", remedy=_REMAKE) from error
    places = np.array([known.get(digest(text), -1) for text in texts])
    missing = np.flatnonzero(places < 0)
    if len(missing):
        raise InputError(
            "rows that the artifact was not evaluated on need the teacher",
            given=f"{len(missing)} of {len(texts)} rows, the first is row {missing[0] + 1}",
            remedy="add --teacher PATH, e.g. runs/qnli/teacher/model",
        )
    return logits[places]


def _answer(texts: Sequence[Text], task: Task, teacher: str, max_length: int) -> NDArray[np.float32]:
    import torch

    from kdc.pipeline.stages.teacher import load_finetuned
    from kdc.pipeline.training import models

    model = load_finetuned(teacher, task, None).eval()
    tokenizer = models.load_tokenizer(teacher)
    longest = min(max_length, models.longest_input(model.config, tokenizer))
    info = tokenizer_info(tokenizer, max_length=longest, token_type_ids="token_type_ids" in tokenizer.model_input_names)
    with tempfile.TemporaryDirectory(prefix="kdc-") as folder:  # a teacher may be an id, or have no such file itself
        tokenizer.backend_tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
        rows = RowTokenizer.read(Path(folder) / "tokenizer.json", info)
    parts = []
    for start in range(0, len(texts), _BATCH):
        feeds = pad(rows.encode(texts[start : start + _BATCH]), info)
        with torch.inference_mode():
            parts.append(model(**{name: torch.from_numpy(values) for name, values in feeds.items()}).logits.numpy())
    return np.concatenate(parts)

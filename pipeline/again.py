"""Compare an artifact with its teacher once more, on rows at hand: those of its own evaluation need no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.terms import Contract, Quality
from errors import InputError
from pipeline.quality import compare
from pipeline.reading.prepared import read_labelled
from pipeline.served import digest, tokenizer_info
from pipeline.tasks import Task, custom_task
from serving.engine import Engine
from serving.tokenizing import RowTokenizer, Text, pad

_SEED = 0
_BATCH = 32


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
        teacher: path or id, for rows that were not in the evaluation; None refuses those.

    Raises:
        InputError: the file does not fit the task, or holds such rows and no teacher is given.
    """
    info = engine.task
    task = custom_task(
        info.name, columns.get("text") or info.text, columns.get("text_pair") or info.text_pair,
        columns.get("label") or "label", info.kind, info.labels,
    )  # fmt: skip
    texts, labels = read_labelled(data, task, separator=columns.get("separator"))
    if contract.limits.max_drop is None:
        return list(texts), None
    truth = np.asarray(labels)
    theirs = _teacher_logits(artifact, texts, task, teacher, engine.tokenizer_info.max_length)
    quality = compare(engine.logits(texts), theirs, truth, info.kind, info.metric, contract=contract, seed=_SEED)
    return list(texts), quality


def _teacher_logits(
    artifact: Path, texts: Sequence[Text], task: Task, teacher: str | None, max_length: int
) -> NDArray[np.float32]:
    with np.load(artifact / "evaluation.npz", allow_pickle=False) as kept:
        known = {row.tobytes(): place for place, row in enumerate(kept["text_sha256"])}
        logits = kept["teacher_logits"]
    places = np.array([known.get(digest(text), -1) for text in texts])
    missing = np.flatnonzero(places < 0)
    found = logits[np.maximum(places, 0)]
    if len(missing) == 0:
        return found
    if teacher is None:
        raise InputError(
            "rows that the artifact was not evaluated on need the teacher",
            given=f"{len(missing)} of {len(texts)} rows, the first is row {missing[0] + 1}",
            remedy="add --teacher PATH, e.g. runs/qnli/teacher/model",
        )
    found[missing] = _answer([texts[int(place)] for place in missing], task, teacher, max_length)
    return found


def _answer(texts: Sequence[Text], task: Task, teacher: str, max_length: int) -> NDArray[np.float32]:
    import torch

    from pipeline import models
    from pipeline.teacher import load_finetuned

    model = load_finetuned(teacher, task, None).eval()
    tokenizer = models.load_tokenizer(teacher)
    longest = min(max_length, models.longest_input(model.config, tokenizer))
    info = tokenizer_info(tokenizer, max_length=longest, token_type_ids="token_type_ids" in tokenizer.model_input_names)
    rows = RowTokenizer.read(Path(models.locate(teacher)) / "tokenizer.json", info)
    parts = []
    for start in range(0, len(texts), _BATCH):
        feeds = pad(rows.encode(texts[start : start + _BATCH]), info)
        with torch.inference_mode():
            parts.append(model(**{name: torch.from_numpy(values) for name, values in feeds.items()}).logits.numpy())
    return np.concatenate(parts)

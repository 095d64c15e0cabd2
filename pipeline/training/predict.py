"""Logits of tokenised rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdc.artifact.manifest import TokenizerInfo
from kdc.pipeline.training.batches import Collator, Rows
from kdc.pipeline.training.environment import pace
from kdc.pipeline.training.joining import logits_of, parts_of
from kdc.serving.engine.long_texts import spread
from kdc.serving.engine.tokenizing import RowTokenizer, Text, pad

# Rows sorted by length together, and shared or resumed together.
PORTION = 2048
_BATCH_SIZE = 64


def predict_portion(model: Any, rows: Rows, start: int, *, pad_id: int) -> NDArray[np.float32]:
    """Logits (rows, outputs)."""
    collate = Collator(pad_id)
    portion = np.arange(start, min(start + PORTION, len(rows)))
    order = portion[np.argsort(rows.lengths[portion], kind="stable")]
    parts = []
    with torch.inference_mode(), pace().work():
        for at in range(0, len(order), _BATCH_SIZE):
            batch = collate(rows.__getitems__(order[at : at + _BATCH_SIZE].tolist()))
            pace().step_begins()
            parts.append(logits_of(model, batch).cpu().numpy())
            pace().step_ends(batch["input_ids"].numel())
    logits = np.empty((len(portion), parts[0].shape[1]), dtype=np.float32)
    logits[order - start] = np.concatenate(parts)
    return logits


def predict(model: Any, rows: Rows, *, pad_id: int) -> NDArray[np.float32]:
    """Logits (rows, outputs); sets evaluation mode."""
    model.eval()
    return np.concatenate([predict_portion(model, rows, start, pad_id=pad_id) for start in portions(len(rows))])


def predict_parts(model: Any, rows: Rows, *, pad_id: int) -> tuple[NDArray[np.float32], list[int]]:
    """Logits (windows, outputs), and each row's number of windows."""
    model.eval()
    collate = Collator(pad_id)
    parts, counts = [], list[int]()
    with torch.inference_mode(), pace().work():
        for start in range(0, len(rows), _BATCH_SIZE):
            batch = collate(rows.__getitems__(list(range(start, min(start + _BATCH_SIZE, len(rows))))))
            parts.append(parts_of(model, batch).cpu().numpy())
            counts += batch["windows"].tolist() if "windows" in batch else [1] * len(batch["labels"])
    return np.concatenate(parts), counts


def answer_texts(
    model: Any, texts: Sequence[Text], tokenizer: RowTokenizer, info: TokenizerInfo
) -> NDArray[np.float32]:
    """Logits (rows, outputs) by the serving code's tokenising and padding."""
    encodings = tokenizer.encode(texts)
    batch = {name: torch.from_numpy(values) for name, values in pad(encodings, info).items()}
    if info.long is not None:
        batch["windows"] = torch.tensor(spread(encodings)[1])
    with torch.inference_mode():
        return logits_of(model, batch).cpu().numpy()


def portions(rows: int) -> range:
    return range(0, rows, PORTION)

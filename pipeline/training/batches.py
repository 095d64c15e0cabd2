"""Tokenised rows as batches: joined with the teacher's logits, padded to the longest, grouped by length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler


class Rows(Dataset):
    """Tokenised rows by position, each joined by row id with the teacher's logits for it.

    Args:
        parts: `datasets.Dataset`s with the columns `row` (the row id), `input_ids`, `length`, and maybe
            `token_type_ids` and `label`. The rows of a part without `label` are unlabelled.
        teacher_logits: (row ids, outputs), indexed by row id; may be memory-mapped.
    """

    def __init__(self, parts: list[Any], teacher_logits: NDArray[np.float32] | None = None) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.teacher_logits = teacher_logits
        self.lengths = np.concatenate([np.asarray(part.with_format("numpy")["length"][:]) for part in parts])
        labels = next((part["label"][0] for part in parts if "label" in part.column_names), 0)
        self.no_label = [0.0] * len(labels) if isinstance(labels, list) else type(labels)(0)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; of memory-mapped logits only the file's name."""
        logits = self.teacher_logits
        return {**vars(self), "teacher_logits": logits.filename if isinstance(logits, np.memmap) else logits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        logits = state["teacher_logits"]
        if isinstance(logits, str | Path):
            self.teacher_logits = np.load(logits, mmap_mode="r")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The rows at several positions, read from each part in one go."""
        rows: dict[int, dict[str, Any]] = {}
        positions = np.asarray(indices)
        for start, end, part in zip(self.starts[:-1], self.starts[1:], self.parts, strict=True):
            inside = positions[(positions >= start) & (positions < end)]
            if not len(inside):
                continue
            columns = part[(inside - start).tolist()]
            for place, index in enumerate(inside.tolist()):
                row = {name: values[place] for name, values in columns.items()}
                row["labelled"] = "label" in row
                row.setdefault("label", self.no_label)
                if self.teacher_logits is not None:
                    row["teacher_logits"] = self.teacher_logits[row["row"]]
                rows[index] = row
        return [rows[index] for index in indices]


class Collator:
    """Turns rows into padded tensors: input_ids, attention_mask, labels, labelled, and token_type_ids and
    teacher_logits where the rows have them.

    Args:
        pad_id: the tokenizer's padding id.
        pad_to: length of every batch in tokens; None pads to the longest row of the batch.
    """

    def __init__(self, pad_id: int, pad_to: int | None = None) -> None:
        self.pad_id = pad_id
        self.pad_to = pad_to

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = self.pad_to or max(row["length"] for row in rows)
        batch = {"attention_mask": torch.zeros(len(rows), length, dtype=torch.long)}
        for name, fill in (("input_ids", self.pad_id), ("token_type_ids", 0)):
            if name in rows[0]:
                batch[name] = torch.full((len(rows), length), fill, dtype=torch.long)
                for place, row in enumerate(rows):
                    batch[name][place, : row["length"]] = torch.as_tensor(row[name])
        for place, row in enumerate(rows):
            batch["attention_mask"][place, : row["length"]] = 1
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        batch["labelled"] = torch.tensor([row["labelled"] for row in rows])
        if "teacher_logits" in rows[0]:
            batch["teacher_logits"] = torch.from_numpy(np.stack([row["teacher_logits"] for row in rows]))
        return batch


class LengthGroupedSampler(Sampler[int]):
    """Shuffles the rows anew in each epoch, so that the rows of a batch have similar lengths.

    The rows of 50 batches at a time are drawn at random, sorted by length and cut into batches; then all batches are
    shuffled. The order depends on the seed and the epoch alone.

    Args:
        lengths: (rows,) tokens of each row.
        batch_size: rows in a batch.
        seed: of the shuffle.
        group: whether to group by length; False gives a plain shuffle.
    """

    def __init__(self, lengths: NDArray[np.integer], batch_size: int, seed: int, group: bool = True) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.group = group
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch, also when it resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        if not self.group:
            return iter(order.tolist())
        pool = 50 * self.batch_size
        batches = []
        for start in range(0, len(order), pool):
            drawn = order[start : start + pool]
            drawn = drawn[np.argsort(-self.lengths[drawn], kind="stable")]
            batches += [drawn[at : at + self.batch_size] for at in range(0, len(drawn), self.batch_size)]
        short = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        random.shuffle(full)
        return iter(np.concatenate(full + short).tolist())  # the short batch comes last, so that all others stay whole

"""Tokenised rows as batches: joined with the teacher's logits, padded to the longest, grouped by length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler


class Rows(Dataset):
    """Tokenised rows by position, each joined with its own teacher logits by row id.

    Args:
        parts: `datasets.Dataset`s with `row`, `input_ids`, `length`[, `token_type_ids`][, `label`]; those without
            `label` are unlabelled.
        teacher_logits: (row ids, outputs), indexed by row id; may be memory-mapped.
    """

    def __init__(self, parts: list[Any], teacher_logits: NDArray[np.float32] | None = None) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.teacher_logits = teacher_logits
        self.lengths = np.concatenate([np.asarray(part.with_format("numpy")["length"][:]) for part in parts])
        labels = next((part["label"][0] for part in parts if "label" in part.column_names), 0)
        self.no_label = [0.0] * len(labels) if isinstance(labels, list) else type(labels)(0)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """One read a part, not one a row."""
        found: dict[int, dict[str, Any]] = {}
        wanted = np.asarray(indices)
        for start, end, part in zip(self.starts[:-1], self.starts[1:], self.parts, strict=True):
            inside = wanted[(wanted >= start) & (wanted < end)]
            if not len(inside):
                continue
            columns = part[(inside - start).tolist()]
            for place, index in enumerate(inside.tolist()):
                row = {name: values[place] for name, values in columns.items()}
                row["labelled"] = "label" in row
                row.setdefault("label", self.no_label)
                if self.teacher_logits is not None:
                    row["teacher_logits"] = self.teacher_logits[row["row"]]
                found[index] = row
        return [found[index] for index in indices]


class Collator:
    """Rows as padded tensors: input_ids, attention_mask[, token_type_ids], labels, labelled[, teacher_logits].

    Args:
        pad_id: the tokenizer's padding id.
        pad_to: fixed length, or None for the longest row.
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
    """A new shuffle each epoch in which neighbours have like length: 50 batches are drawn at random, sorted by length,
    cut into batches, and all batches are shuffled. The order is a function of seed and epoch alone.

    Args:
        lengths: (rows,) tokens of each row.
        batch_size: rows a batch.
        seed: of the shuffle.
        group: False gives a plain shuffle.
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
        return iter(np.concatenate(full + short).tolist())  # a short batch ends the epoch, so that no batch straddles

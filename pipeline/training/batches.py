"""Tokenised rows as batches: joined with the teacher's logits, padded to the longest, grouped by length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.data.tokens import apart


class Rows(Dataset):
    """Tokenised rows by position, each joined by row id with the teacher's logits for it. Another process is sent the
    names of their files, if they were `read`.

    Args:
        parts: `datasets.Dataset`s with the columns `row` (the row id), `input_ids`, `length`, and maybe
            `token_type_ids`, `windows` (see `kdc.pipeline.data.tokens`) and `label`. The rows of a part without `label`
            are unlabelled.
        teacher_logits: (row ids, outputs), indexed by row id; may be memory-mapped.
    """

    _files: tuple[PreparedData, str, tuple[str, ...], Path | None] | None = None  # as given to `read`

    def __init__(self, parts: list[Any], teacher_logits: NDArray[np.float32] | None = None) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.teacher_logits = teacher_logits
        self.lengths = np.concatenate([np.asarray(part.with_format("numpy")["length"][:]) for part in parts])
        labels = next((part["label"][0] for part in parts if "label" in part.column_names), 0)
        self.no_label = [0.0] * len(labels) if isinstance(labels, list) else type(labels)(0)

    @classmethod
    def read(cls, data: PreparedData, role: str, splits: Sequence[str], teacher_logits: Path | None = None) -> Self:
        """Open tokenised splits of a run, in the tokens of a role: "teacher", "teacher-2", ..., "student" or "fewer".
        The file (.npy) of the teacher's logits, by row id, is memory-mapped.

        Raises:
            KdcError: a split is not there.
        """
        logits = None if teacher_logits is None else np.load(teacher_logits, mmap_mode="r")
        rows = cls([data.tokens(role, split) for split in splits], logits)
        rows._files = (data, role, tuple(splits), teacher_logits)
        return rows

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By the names as they were given: another host may see the shared disk under another absolute path.
        return super().__reduce_ex__(protocol) if self._files is None else (Rows.read, self._files)

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
            for position, index in enumerate(inside.tolist()):
                row = {name: values[position] for name, values in columns.items()}
                row["labelled"] = "label" in row
                row.setdefault("label", self.no_label)
                if self.teacher_logits is not None:
                    row["teacher_logits"] = self.teacher_logits[row["row"]]
                rows[index] = row
        return [rows[index] for index in indices]


@dataclass(frozen=True)
class Collator:
    """Turns rows into padded tensors: input_ids, attention_mask, labels, labelled, and token_type_ids and
    teacher_logits if the rows have them. Rows in windows have the inputs of all windows, a row's one after another, and
    `windows`, the number of each row."""

    pad_id: int  # the tokenizer's padding id
    pad_to: int | None = None  # length of every batch in tokens; None pads to the longest row of the batch

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        parts = apart(rows)
        lengths = torch.tensor([len(part["input_ids"]) for part in parts])
        longest = self.pad_to or int(lengths.max())
        batch = {  # what has a number for each row comes first: the Trainer takes a batch's size from there
            "labels": torch.tensor([row["label"] for row in rows]),
            "labelled": torch.tensor([row["labelled"] for row in rows]),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }
        if "windows" in rows[0]:
            batch["windows"] = torch.tensor([len(row["windows"]) for row in rows])
        for name, fill in (("input_ids", self.pad_id), ("token_type_ids", 0)):
            if name in parts[0]:
                batch[name] = torch.full((len(parts), longest), fill, dtype=torch.long)
                for tensor, part in zip(batch[name], parts, strict=True):
                    tensor[: len(part[name])] = torch.as_tensor(part[name])
        if "teacher_logits" in rows[0]:
            batch["teacher_logits"] = torch.from_numpy(np.stack([row["teacher_logits"] for row in rows]))
        return batch


@dataclass(eq=False)
class LengthGroupedSampler(Sampler[int]):
    """Shuffles the rows anew in each epoch; the rows of a batch have similar lengths.

    The rows of 50 batches at a time are drawn at random, sorted by length and cut into batches; then all batches are
    shuffled. The order depends on the seed and the epoch alone.
    """

    lengths: NDArray[np.integer]  # (rows,) tokens of each row
    batch_size: int
    seed: int
    group: bool = True  # False gives a plain shuffle
    epoch: int = 0  # set by the Trainer at the start of each epoch, also when it resumes

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
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
        return iter(np.concatenate(full + short).tolist())  # the short batch comes last: all others stay whole

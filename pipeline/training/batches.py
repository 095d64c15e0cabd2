"""Batches of tokenised rows."""

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
    """Tokenised rows.

    Args:
        parts: datasets as in `kdc.pipeline.data.prepared`; labelled ones first.
        teacher_logits: (row ids, outputs).
    """

    _files: tuple[PreparedData, str, tuple[str, ...], Path | None] | None = None  # arguments of `read`

    def __init__(self, parts: list[Any], teacher_logits: NDArray[np.float32] | None = None) -> None:
        import datasets

        self.dataset = datasets.concatenate_datasets(parts)  # rows of parts without labels have None
        self.teacher_logits = teacher_logits
        self.lengths = np.asarray(self.dataset.with_format("numpy")["length"][:])
        label = self.dataset["label"][0] if "label" in self.dataset.column_names else 0
        self.no_label = [0.0] * len(label) if isinstance(label, list) else type(label)(0)

    @classmethod
    def read(cls, data: PreparedData, role: str, splits: Sequence[str], teacher_logits: Path | None = None) -> Self:
        """Read splits of a run, and the teacher's logits from a .npy file.

        Raises:
            KdcError: a split is missing.
        """
        logits = None if teacher_logits is None else np.load(teacher_logits, mmap_mode="r")
        rows = cls([data.tokens(role, split) for split in splits], logits)
        rows._files = (data, role, tuple(splits), teacher_logits)
        return rows

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Another host may mount the shared disk elsewhere, so paths stay unresolved.
        return super().__reduce_ex__(protocol) if self._files is None else (Rows.read, self._files)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        columns = self.dataset[indices]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row in rows:
            row["labelled"] = row.get("label") is not None
            row["label"] = row["label"] if row["labelled"] else self.no_label
            if self.teacher_logits is not None:
                row["teacher_logits"] = self.teacher_logits[row["row"]]
        return rows


@dataclass(frozen=True)
class Collator:
    """Pads rows into tensors. Each window is an input; `windows` (rows,) counts them."""

    pad_id: int
    pad_to: int | None = None  # tokens; None: longest row of the batch

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        parts = apart(rows)
        lengths = torch.tensor([len(part["input_ids"]) for part in parts])
        longest = self.pad_to or int(lengths.max())
        batch = {  # labels first: they give the Trainer the batch size
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
    """Shuffles rows into batches of similar length: sorts 50 random batches at a time."""

    lengths: NDArray[np.integer]  # (rows,) in tokens
    batch_size: int
    seed: int
    group: bool = True  # False: plain shuffle
    epoch: int = 0  # the Trainer sets it, also on resume

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
        return iter(np.concatenate(full + short).tolist())  # an earlier short batch would misalign the next

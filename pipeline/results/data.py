"""What stage `data` hands on."""

from __future__ import annotations

from pydantic import Field

from kdc.pipeline.results.base import Result, StageResult


class Lengths(Result):
    """A histogram of rows by their length in tokens, before they are cut.

    Attributes:
        width: tokens that one bin spans.
        counts: rows by bin: bin i holds those of i * width tokens and more; the last one all that are longer still.
    """

    width: int
    counts: tuple[int, ...]


class TokenCounts(Result):
    """One tokenised split.

    Attributes:
        rows: how many there are.
        tokens: of all rows together, after the cut.
        truncated: rows that were longer than the cut.
        lengths: rows by length before the cut.
    """

    rows: int
    tokens: int
    truncated: int
    lengths: Lengths


class SplitCounts(Result):
    """One split of the rows.

    Attributes:
        rows: how many there are.
        labels: rows by label; only for classification with labels.
    """

    rows: int
    labels: dict[str, int] | None = None


class DataReport(Result):
    """What was read and how it was split; also written to `data/report.json`.

    Attributes:
        kind: what the label column holds.
        splits: by name.
        held_out: training rows that became the evaluation split, because no evaluation rows were given.
        unused_train_rows: training rows that no split holds (`data.max_train_rows`).
        duplicates: counts of rows whose text stands elsewhere too, by where.
        skipped: rows left out by split, because the published file is known to be broken there.
        warnings: sentences for the person who watches.
    """

    kind: str = ""
    splits: dict[str, SplitCounts] = Field(default_factory=dict)
    held_out: int = 0
    unused_train_rows: int = 0
    duplicates: dict[str, int] = Field(default_factory=dict)
    skipped: dict[str, int] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class DataResult(StageResult):
    """Stage `data`. A role is whose tokenizer was used: "teacher", "teacher-2", ..., "student".

    Attributes:
        max_length: tokens after which a row is cut, by role.
        tokens: what was tokenised, by role and split.
        report: what was read.
    """

    STAGE = "data"

    max_length: dict[str, int]
    tokens: dict[str, dict[str, TokenCounts]]
    report: DataReport = DataReport()

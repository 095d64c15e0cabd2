"""Results of the stages `data` and `vocabulary`."""

from pydantic import Field

from kdc.pipeline.config.labelled import Description
from kdc.pipeline.results.base import Result, StageResult


class Lengths(Result):
    """Rows by length in tokens, before the cut."""

    width: int  # tokens in a bin
    counts: tuple[int, ...]  # the last bin has all longer rows


class TokenCounts(Result):
    rows: int
    tokens: int  # after the cut
    truncated: int
    lengths: Lengths


class SplitCounts(Result):
    rows: int
    labels: dict[str, int] | None = None


class DataReport(Result):
    """Also in `data/report.json`."""

    kind: str = ""  # of the label column
    labels: str | None = None  # who labelled the evaluation rows
    replaced: Description | None = None  # labelled the training table
    splits: dict[str, SplitCounts] = Field(default_factory=dict)
    held_out: int = 0  # training rows used for evaluation
    unused_train_rows: int = 0  # beyond `data.max_train_rows`
    unused_unlabeled_rows: int = 0  # beyond `data.max_unlabeled_rows`
    duplicates: dict[str, int] = Field(default_factory=dict)  # repeats, near repeats and shared groups
    skipped: dict[str, int] = Field(default_factory=dict)  # invalid rows by split
    warnings: tuple[str, ...] = ()


class DataResult(StageResult):
    STAGE = "data"

    max_length: dict[str, int]  # tokens by role
    tokens: dict[str, dict[str, TokenCounts]]  # by role and split
    report: DataReport = DataReport()


class VocabularyResult(StageResult):
    STAGE = "vocabulary"

    pieces: int | None = None  # None if the vocabulary cannot shrink
    note: str = ""  # on scripts that lose their pieces
    tokens: dict[str, TokenCounts] = Field(default_factory=dict)  # by split

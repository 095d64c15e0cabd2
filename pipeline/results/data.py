"""What stage `data` hands on: what was read, how it was split, and how long the rows are."""

from pydantic import Field

from kdc.pipeline.results.base import Result, StageResult


class Lengths(Result):
    """A histogram of rows by their length in tokens, before they are cut."""

    width: int  # tokens that one bin spans
    # rows by bin: bin i holds those of i * width tokens and more; the last one all that are longer still
    counts: tuple[int, ...]


class TokenCounts(Result):
    """One tokenised split."""

    rows: int  # how many there are
    tokens: int  # tokens of all rows together, after the cut
    truncated: int  # rows that were longer than the cut
    lengths: Lengths  # rows by length before the cut


class SplitCounts(Result):
    """One split of the rows."""

    rows: int  # how many there are
    labels: dict[str, int] | None = None  # rows by label; only for classification with labels


class DataReport(Result):
    """What was read and how it was split; also written to `data/report.json`."""

    kind: str = ""  # what the label column holds
    splits: dict[str, SplitCounts] = Field(default_factory=dict)  # counts of rows, by split
    held_out: int = 0  # training rows that became the evaluation split, because no evaluation rows were given
    unused_train_rows: int = 0  # training rows that no split holds (`data.max_train_rows`)
    unused_unlabeled_rows: int = 0  # the same of the unlabelled ones (`data.max_unlabeled_rows`)
    duplicates: dict[str, int] = Field(default_factory=dict)  # counts of rows whose text stands elsewhere too, by where
    # rows left out by split, because the published file is known to be broken there
    skipped: dict[str, int] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # sentences for the person who watches


class DataResult(StageResult):
    """Stage `data`. A role is whose tokenizer was used: "teacher", "teacher-2", ..., "student"."""

    STAGE = "data"

    max_length: dict[str, int]  # tokens after which a row is cut, by role
    tokens: dict[str, dict[str, TokenCounts]]  # what was tokenised, by role and split
    report: DataReport = DataReport()  # what was read


class VocabularyResult(StageResult):
    """Stage `vocabulary`."""

    STAGE = "vocabulary"

    pieces: int | None = None  # how many the smaller vocabulary has; None where the teacher's cannot be made smaller
    tokens: dict[str, TokenCounts] = Field(default_factory=dict)  # the rows as it cuts them, by split

"""Settings of rows, columns and long texts."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from kdc.artifact.contract.terms import MOST_TOKENS, MOST_WINDOWS, Texts
from kdc.artifact.manifest import Join, LongTexts
from kdc.artifact.task_kinds import KINDS, Kind
from kdc.common.records import Dialect
from kdc.pipeline.config.metrics import METRICS
from kdc.pipeline.config.section import Section

LENGTH = "length"  # a slice by tokens, not a column
_SPECIAL = 4  # most special tokens (RoBERTa pairs)


class DataSettings(Section):
    task: str | None = None
    data: Path | None = None
    train: Path | None = None
    eval: Path | None = None
    unlabeled: Path | None = None
    max_unlabeled_rows: int | None = Field(
        None, ge=1, description="use at most this many of these texts, drawn at random (default: all)"
    )
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    kind: Literal["auto", "classification", "multilabel", "regression"] = Field(
        "auto", description="what the label column holds; auto infers it from the training rows of your own files"
    )
    separator: str | None = Field(None, description="text that separates the labels in a multi-label cell")
    prefix: str = Field(
        "",
        max_length=100,
        description="put this before every text; it becomes a part of the tokenizer (family e5 sets it to 'query: ')",
    )
    group: str | None = Field(
        None, description="column with the group of a row, such as a user or a document; groups are never split"
    )
    time: str | None = Field(
        None,
        description="column with the time of a row, a number or ISO 8601; the latest rows become the evaluation set",
    )
    skip_invalid: bool = False
    most_invalid: float = Field(0.1, gt=0, lt=1, description="largest share of a file that skip_invalid leaves out")
    metric: str | None = None
    slices: Texts = Field((), max_length=8)
    audit_labels: bool = False
    max_train_rows: int | None = Field(None, ge=20)
    max_length: int | None = Field(
        None,
        ge=4,
        le=MOST_TOKENS,
        description="cut a text, or both texts of a pair together, to this many tokens (default: the task's)",
    )

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in METRICS:
            raise ValueError(f"Input should be one of {', '.join(METRICS)}")
        return metric

    @property
    def dialect(self) -> Dialect:
        return Dialect(self.delimiter, self.encoding)

    @model_validator(mode="after")
    def _at_most_of_what_is_there(self) -> Self:
        if self.max_unlabeled_rows is not None and self.unlabeled is None:
            raise ValueError(
                f"max_unlabeled_rows={self.max_unlabeled_rows} needs unlabelled texts: set unlabeled too, or drop it"
            )
        return self


class LongSettings(Section):
    mode: Literal["cut", "windows"] = Field(
        "cut",
        description="what to do with rows over data.max_length tokens: cut drops the rest, windows splits the row "
        "into windows of that length and combines their answers",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="tokens from the start of one window to the start of the next (default: three quarters of a "
        "window, without the kept tokens)",
    )
    windows: int = Field(
        8, ge=2, le=MOST_WINDOWS, description="split a row into at most this many windows, and cut the rest"
    )
    keep: int = Field(
        0, ge=0, description="repeat this many first tokens of a text, such as its title, in every window"
    )
    join: Literal["auto"] | Join = Field(
        "auto",
        description="how to combine the windows' answers: mean, max, first, noisy-or, or auto. With auto, kdc trains "
        "with the mean (multi-label: max), and then takes the one with the lowest teacher loss on the tuning set "
        "(multi-label: for each label)",
    )

    @model_validator(mode="after")
    def _says_nothing_of_windows_where_rows_are_cut(self) -> Self:
        given = {name: value for name, value in self.model_dump(exclude_defaults=True).items() if name != "mode"}
        if self.mode == "cut" and given:
            listed = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"{listed} needs windows, and rows are cut: set mode=windows (--long windows), or drop it")
        return self

    def trained_join(self, kind: Kind) -> tuple[Join, ...] | None:
        """None if rows are cut. Multi-label takes the maximum: in a mean, windows without a label would outvote one
        with it."""
        if self.mode == "cut":
            return None
        if self.join != "auto":
            return (self.join,)
        return ("max" if KINDS[kind].has_lists else "mean",)

    def of(self, max_length: int, join: tuple[Join, ...] = ("mean",)) -> LongTexts | None:
        """None if rows are cut."""
        if self.mode == "cut":
            return None
        room = max_length - self.keep
        stride = self.stride or max(1, min(3 * room // 4, room - _SPECIAL))
        return LongTexts(stride=stride, windows=self.windows, keep=self.keep, join=join)

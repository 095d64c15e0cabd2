"""Reads a label column, and infers its labels and kind."""

import re
from collections import Counter
from dataclasses import dataclass, field

from kdc.artifact.manifest import MOST_LABELS
from kdc.artifact.task_kinds import KINDS, Kind
from kdc.pipeline.data.problems import MAX_SHOWN, FileProblem, Problems, RowProblem, is_missing, nearest_name, show
from kdc.pipeline.data.sources import SplitSource

_FEW_NUMBERS = 20
_MOSTLY = 0.9
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST = 3.4e38  # of float32
NOT_TRAINED = "label is not in the training rows"


def parse_number(text: str) -> float | None:
    """None if float32 cannot hold it, and for "inf" or "1,5"."""
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if abs(number) <= _LARGEST else None


@dataclass
class LabelReader:
    """Reads and counts one split's labels; multi-label rows have a list."""

    kind: Kind | None  # None until `settle` infers it
    names: tuple[str, ...] = ()  # empty: learn them from this split
    separator: str | None = None
    is_glue: bool = False  # "0", "1", ... are indices of `names`, -1 is none
    learned: bool = False  # from training rows
    counts: Counter[str] = field(default_factory=Counter)  # empty for regression
    is_list: bool | None = None  # None until known
    _numbers: set[str] = field(default_factory=set)
    _rows: int = 0
    _numeric_rows: int = 0
    _has_point: bool = False
    _not_numbers: list[tuple[int, RowProblem]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known = {str(index): name for index, name in enumerate(self.names)} if self.is_glue else {}
        self._known |= {name: name for name in self.names}
        if self.kind is not None:
            self.is_list = KINDS[self.kind].has_lists
        elif self.separator:
            self.is_list = True

    def read(self, value: object, line: int) -> str | list[str]:
        """Read one label.

        Raises:
            RowProblem: missing, unknown, or not of the column's kind.
            FileProblem: too many different labels.
        """
        if self.is_list is None:
            self.is_list = isinstance(value, list)
        if self.is_list:
            labels = list(dict.fromkeys(self._known_name(_single(item)) for item in self._items(value)))
            self.counts.update(labels)
            return labels
        label = _single(value)
        if self.is_glue and label in ("-1", "-1.0") and label not in self._known:
            raise RowProblem("row has no label", "-1 marks unlabelled rows", "give a labelled split", is_invalid=True)
        if self.kind != "classification":
            number = self._note_number(label, line)
            if self.kind == "regression":
                if number is None:
                    raise _not_a_number(label)
                return repr(number)
        label = self._known_name(label)
        if len(self.counts) <= MOST_LABELS or label in self.counts:
            self.counts[label] += 1
        elif self.kind == "classification":
            raise _too_many_labels()
        return label

    def settle(self, source: SplitSource, problems: Problems) -> Kind:
        """Call after the last row.

        Lists or a separator mean multi-label. At least 90 % numbers, with a decimal point or over 20 distinct
        ones, mean regression; all else means classification.
        """
        if self.kind is None:
            holds_measurements = self._has_point or len(self._numbers) > _FEW_NUMBERS
            if self.is_list:
                self.kind = "multilabel"
            elif holds_measurements and self._numeric_rows >= _MOSTLY * self._rows:
                self.kind = "regression"
                counts = [1] * len(self._not_numbers)
                if counts:
                    counts[-1] = self._rows - self._numeric_rows - len(counts) + 1
                for (line, problem), count in zip(self._not_numbers, counts, strict=True):
                    problems.add(source, line, problem, count)
            else:
                self.kind = "classification"
        if KINDS[self.kind].has_labels and len(self.counts) > MOST_LABELS:
            problems.add(source, None, _too_many_labels())
        return self.kind

    def sorted_names(self) -> tuple[str, ...]:
        """By value if all are whole numbers, else by spelling."""
        are_whole = all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in self.counts)
        return tuple(sorted(self.counts, key=lambda name: (int(name) if are_whole else 0, name)))

    def _items(self, value: object) -> list[object]:
        if isinstance(value, list):
            return value
        if isinstance(value, str) and self.separator:
            return [item for item in value.split(self.separator) if item.strip()]
        if is_missing(value):
            raise _missing()
        remedy = "write a list of labels, or name their separator: --set data.separator=|"
        raise RowProblem("label is not a list", show(value), remedy)

    def _known_name(self, label: str) -> str:
        if not self._known:
            return label
        name = self._known.get(label)
        if name is None:
            known = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
            what = NOT_TRAINED if self.learned else "unknown label"
            remedy = f"the labels of {'the training rows' if self.learned else 'this task'} are: {known}"
            raise RowProblem(what, f"{show(label)}{nearest_name(label, self.names)}", remedy)
        return name

    def _note_number(self, label: str, line: int) -> float | None:
        self._rows += 1
        number = parse_number(label)
        if number is not None:
            self._numeric_rows += 1
            self._has_point = self._has_point or "." in label
            if len(self._numbers) <= _FEW_NUMBERS:
                self._numbers.add(label)
        elif len(self._not_numbers) < MAX_SHOWN:
            self._not_numbers.append((line, _not_a_number(label)))
        return number

    @property
    def is_constant(self) -> bool:
        return len(self._numbers if self.kind == "regression" else self.counts) < 2


def _single(value: object) -> str:
    label = value.strip() if isinstance(value, str) else "" if is_missing(value) else str(value)
    if not label or label.lower() == "nan":
        raise _missing()
    if isinstance(value, bool):
        return label.lower()
    if isinstance(value, str | int | float):
        return label
    if isinstance(value, list):
        raise RowProblem("label is a list", show(value), "for several labels a row: --set data.kind=multilabel")
    raise RowProblem("label is neither a string nor a number", type(value).__name__, "check --label")


def _missing() -> RowProblem:
    remedy = "fill in or remove these rows; unlabelled ones go to --unlabeled"
    return RowProblem("label is missing", remedy=remedy, is_invalid=True)


def _not_a_number(label: str) -> RowProblem:
    remedy = "correct these rows, or, if they are class names: --set data.kind=classification"
    if parse_number(label.replace(",", ".", 1)) is not None:
        remedy = "write decimals with a point"
    return RowProblem("label is not a finite number", show(label), remedy)


def _too_many_labels() -> FileProblem:
    remedy = "check --label; for numbers to predict: --set data.kind=regression"
    return FileProblem(f"more than {MOST_LABELS:,} different labels", remedy=remedy)

"""Collects all mistakes in a run's data files. Messages never quote a text."""

import difflib
import json
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kdc.common.errors import InputError
from kdc.pipeline.data.sources import SplitSource

MAX_SHOWN = 5  # per file


@dataclass(eq=False)
class RowProblem(Exception):
    what: str  # equal kinds are counted together
    detail: str = ""
    remedy: str = ""
    is_invalid: bool = False  # the row has no text or label, or is no row of its format
    line: int | None = None  # where a `FileProblem` starts; None: whole file


class FileProblem(RowProblem):
    """A file's rest cannot be read."""


class Problems:
    """`skipped` counts rows left out, by split.

    Args:
        left_out: .jsonl file for invalid rows; None: they are mistakes.
        way_out: another remedy for invalid rows.
    """

    def __init__(self, left_out: Path | None = None, way_out: str = "") -> None:
        self.left_out, self.way_out = left_out, way_out
        self.skipped: Counter[str] = Counter()
        self.first_skipped: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._of_file: Counter[str] = Counter()
        self._listed: list[str] = []
        self._remedies: dict[str, None] = {}

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, source: SplitSource, line: int | None, problem: RowProblem, count: int = 1) -> None:
        """Add a mistake, or the first of `count` equal ones. Lines start at 1; None: the whole file."""
        where = source.name if line is None else f"{source.name}{source.unit}{line}"
        reason = problem.what + (f" ({problem.detail})" if problem.detail else "")
        if self.left_out is not None and problem.is_invalid:
            self.skipped[source.split] += 1
            self.first_skipped.setdefault(source.split, f"{where}: {reason}; {problem.remedy}")
            with self.left_out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"file": source.name, "line": line, "reason": reason}) + "\n")
            return
        if self._of_file[source.name] < MAX_SHOWN:
            self._listed.append(f"{where}: {reason}")
            for remedy in (problem.remedy, self.way_out if problem.is_invalid else ""):
                if remedy:
                    self._remedies[remedy] = None
        self._counts[problem.what] += count
        self._of_file[source.name] += count

    def raise_if_any(self) -> None:
        total = len(self)
        if not total:
            return
        summary = ", ".join(f"{count:,} x {what}" for what, count in self._counts.most_common())
        more = total - len(self._listed)
        lines = self._listed + ([f"and {more:,} more"] if more else [])
        raise InputError(
            f"the data cannot be used, {total:,} mistake{'s' * (total > 1)}: {summary}",
            given="\n    ".join(["", *lines]) if len(lines) > 1 else lines[0],
            remedy="; ".join(self._remedies) or "correct or remove these rows",
        )


def nearest_name(name: str, known: Collection[str]) -> str:
    """ "; did you mean 'x'?" for the most similar name, or ""."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_missing(value: object) -> bool:
    """None, or the NaN of Parquet and JSON."""
    return value is None or (isinstance(value, float) and math.isnan(value))

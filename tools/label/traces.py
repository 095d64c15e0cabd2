"""`kdc label SPEC.toml OUT --traces FILE`: answers that a model gave already, one for each text.

Reads requests with their replies, OpenAI's fine-tuning files, and tables of texts with answers.
"""

import time
from collections import Counter
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import get_args

from kdc.common.errors import InputError
from kdc.common.frozen import Frozen
from kdc.common.places import exists, find, lock
from kdc.common.progress import Meter
from kdc.serving.bulk.inputs import WINDOW_ROWS, read_all
from kdc.tools.label.source import Answer, How
from kdc.tools.label.spec import Spec
from kdc.tools.label.table import Row, Table, describe
from kdc.tools.label.trace_forms import NoTrace, RowReader
from kdc.tools.label.trace_forms import Trace as Trace  # for importers


class TraceCounts(Frozen):
    """`usable`, `outside`, `unreadable` and `other` sum to `rows`."""

    rows: int
    usable: int  # answered from the list
    duplicates: int  # usable; text repeated
    disagreeing: int  # texts with different answers
    outside: int  # answered outside the list
    unreadable: int  # broken, or without an answer
    other: int  # another question, or an unknown form
    self_agreement: float | None  # share of `pairs` with equal answers
    pairs: int  # pairs of answers to one text


class _Repeated:
    def __init__(self, first: Answer, labels: tuple[str, ...]) -> None:
        self._labels, self._sums, self._how = labels, [0.0] * len(labels), first.how
        self.votes: Counter[str] = Counter()
        self.add(first)

    def add(self, answer: Answer) -> None:
        self._sums = [total + probability for total, probability in zip(self._sums, answer.probabilities, strict=True)]
        self._how = max(self._how, answer.how, key=get_args(How).index)
        self.votes[answer.label(self._labels)] += 1

    @property
    def mean(self) -> Answer:
        """Its `how` is the worst of the answers'."""
        return Answer(tuple(total / self.votes.total() for total in self._sums), self._how)


def read_traces(
    path: Path, spec: Spec, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Trace], TraceCounts]:
    """Gives the mean answer to each text, in the order of the texts' first rows.

    Args:
        progress: takes bytes and rows read so far.

    Raises:
        InputError: the file is missing, of no known format, or not readable as such.
    """
    files = find(str(path))
    reader, rows = RowReader(spec), Counter[str]()
    traces: dict[str, Trace] = {}
    repeated: dict[str, _Repeated] = {}
    for window, done in read_all(files):
        rows["unreadable"] += len(window.bad)
        for row in window.dicts():
            try:
                trace = reader.read(row)
            except NoTrace as none:
                rows[none.why] += 1
                continue
            rows["usable"] += 1
            if (first := traces.setdefault(trace.text, trace)) is not trace:
                if trace.text not in repeated:
                    repeated[trace.text] = _Repeated(first.answer, spec.labels)
                repeated[trace.text].add(trace.answer)
        if progress is not None:
            progress(done, rows.total())
    for text, answers in repeated.items():
        traces[text] = Trace(text, answers.mean, traces[text].model)
    return list(traces.values()), _counts(rows, len(traces), [answers.votes for answers in repeated.values()])


def _counts(rows: Counter[str], texts: int, votes_of_repeated: list[Counter[str]]) -> TraceCounts:
    pairs = sum(comb(each.total(), 2) for each in votes_of_repeated)
    equal = sum(comb(count, 2) for each in votes_of_repeated for count in each.values())
    return TraceCounts(
        rows=rows.total(),
        duplicates=rows["usable"] - texts,
        disagreeing=sum(len(each) > 1 for each in votes_of_repeated),
        **{outcome: rows[outcome] for outcome in ("usable", "outside", "unreadable", "other")},
        self_agreement=equal / pairs if pairs else None,
        pairs=pairs,
    )


class FromTraces(TraceCounts):
    output: str
    texts: int  # distinct texts
    how: dict[str, int]  # texts by `How`
    resolved: list[str]  # models' own names


def label_traces(spec: Spec, path: Path, output: str) -> FromTraces:
    """Write OUT from logged answers.

    Raises:
        InputError: as `read_traces`, OUT is there already, or no row has an answer of the list.
    """
    if exists(output):
        raise InputError("the output is there already", given=output, remedy="another name")
    with lock(output), Meter() as meter:
        table = Table(spec, str(path), output)
        meter.start("rows", table.bytes or None)
        began = time.monotonic()
        traces, counts = read_traces(
            path,
            spec,
            lambda done, rows: meter.update(done, rows, rows / max(time.monotonic() - began, 1e-9)),
        )
        if not traces:
            remedy = "compare the question and its labels in SPEC with the log"
            raise InputError("no row has an answer of the list", given=f"{path}: {_told(counts)}", remedy=remedy)
        answers = {trace.text: trace.answer for trace in traces}
        rows = [Row(str(path), number, trace.text, None) for number, trace in enumerate(traces, 1)]
        table.write(
            lambda row: answers[row.text], (rows[at : at + WINDOW_ROWS] for at in range(0, len(rows), WINDOW_ROWS))
        )
        made = FromTraces(
            output=output,
            texts=len(traces),
            how=dict(Counter(trace.answer.how for trace in traces)),
            resolved=sorted({trace.model for trace in traces if trace.model is not None}),
            **vars(counts),
        )
        describe(output, spec, made)
    return made


def _told(counts: TraceCounts) -> str:
    return (
        f"{counts.rows:,} rows: {counts.usable:,} usable, {counts.outside:,} with an answer outside the list, "
        f"{counts.other:,} of another question or form, {counts.unreadable:,} unreadable"
    )


def render_traces(made: FromTraces) -> str:
    ways = ", ".join(f"{count:,} by {how}" for how, count in sorted(made.how.items()))
    lines = [_told(made), f"{made.output}: {made.texts:,} distinct texts ({ways})"]
    if made.self_agreement is not None:
        lines.append(
            f"{made.duplicates:,} rows repeat a text; the model agrees with itself on "
            f"{100 * made.self_agreement:.1f} % of {made.pairs:,} pairs, and gave {made.disagreeing:,} texts different "
            "answers"
        )
    if len(made.resolved) > 1:
        lines.append(f"the answers come from several models: {', '.join(made.resolved[:10])}")
    lines.append(f"next: kdc compress --train {made.output} --teacher-scores {made.output} --family minilm")
    return "\n".join(lines)

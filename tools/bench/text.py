"""The result of a benchmark as text for a terminal."""

from collections.abc import Sequence

from kdc.common.tables import aligned, number
from kdc.tools.bench.result import BenchResult, SubjectResult

_SUBJECT_TITLES = ("subject", "runtime", "on", "threads", "cold start s", "peak MB")
_CASE_TITLES = ("tokens", "rows", "subject", "p50 ms", "p95 ms", "p99 ms", "rows/s", "x first")


def render(result: BenchResult) -> str:
    """The machine, a table of the subjects, and a table with a line for each case and subject."""
    machine, settings = result.machine, result.settings
    lines = [
        ", ".join([machine.cpu.model, f"{machine.cores.usable} cores", *machine.nvidia.devices]),
        ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
        f"{settings.rounds} rounds in turns, {settings.seconds:g} s a turn after 3 calls that do not count; "
        f"cold start: median of {settings.starts}, from the process to the first answer",
        "",
        aligned([_SUBJECT_TITLES, *map(_subject_row, result.subjects)], left=(0, 1, 2)),
        "",
        aligned([_CASE_TITLES, *_case_rows(result.subjects)], left=(2,)),
        *(f"note: {subject.name}: {note}" for subject in result.subjects for note in subject.notes),
    ]
    return "\n".join(lines)


def _subject_row(subject: SubjectResult) -> tuple[str, ...]:
    return (
        subject.name,
        f"{subject.runtime} {subject.variant}".strip(),
        subject.on,
        str(subject.threads),
        f"{subject.cold_start_s:.2f}",
        f"{subject.peak_memory_bytes / 1e6:.0f}",
    )


def _case_rows(subjects: Sequence[SubjectResult]) -> list[tuple[str, ...]]:
    """Rows of the second table, grouped by case, so that what is compared stands together."""
    cases = [(case, subject.name) for subject in subjects for case in subject.cases]
    cases.sort(key=lambda entry: (entry[0].length, entry[0].batch))  # stable: subjects stay in their order
    return [
        (
            str(case.tokens),
            str(case.batch),
            name,
            *(f"{milliseconds:.2f}" for milliseconds in (case.p50_ms, case.p95_ms, case.p99_ms)),
            f"{case.rows_per_second:.0f}",
            number(case.against_first, 2),
        )
        for case, name in cases
    ]

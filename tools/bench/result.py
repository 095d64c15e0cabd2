"""The result of `kdc bench`, as JSON or text."""

from collections.abc import Sequence

from kdc.common.frozen import Frozen
from kdc.common.machine import Cores, Cpu, Nvidia
from kdc.common.tables import aligned, number

_SUBJECT_TITLES = ("subject", "runtime", "on", "threads", "cold start s", "peak MB")
_CASE_TITLES = ("tokens", "rows", "subject", "p50 ms", "p95 ms", "p99 ms", "rows/s", "x first", "% of CPU")


class Loaded(Frozen):
    runtime: str
    variant: str  # or torch's data type
    on: str  # provider, or torch's device
    threads: int
    notes: tuple[str, ...]
    longest: int  # most tokens


class Turn(Frozen):
    tokens: int  # per row
    ms: tuple[float, ...]  # of each call
    peak_share: float | None = None

    def rows_per_second(self, batch: int) -> float:
        return 1000 * batch * len(self.ms) / sum(self.ms)


class CaseResult(Frozen):
    batch: int  # rows a call
    length: int  # tokens, as requested
    tokens: int  # tokens, as measured
    calls: int
    p50_ms: float  # median of calls
    p95_ms: float
    p99_ms: float
    rows_per_second: float  # median of rounds
    peak_share: float | None  # median, 0 to 1
    # rows/s relative to the first subject, median of rounds; None if rows are too long for that one
    against_first: float | None


class SubjectResult(Loaded):
    name: str
    path: str
    cold_start_s: float  # median, process start to answer
    peak_memory_bytes: int
    cases: tuple[CaseResult, ...]  # skips longer rows


class BenchSettings(Frozen):
    rounds: int
    seconds: float  # of a turn
    device: str
    starts: int  # per subject


class BenchMachine(Frozen):
    cpu: Cpu
    cores: Cores
    nvidia: Nvidia
    packages: dict[str, str]  # versions by name


class OperatorTime(Frozen):
    operator: str
    nodes: int
    ms: float


class PassProfile(Frozen):
    """GMAC: a billion multiplications and additions."""

    subject: str
    rows: int
    tokens: int  # per row
    threads: int
    operators: tuple[OperatorTime, ...]  # the longest first
    gmacs_per_second: float  # of the pass
    share_of_products: float  # 0 to 1, see `kdc.tools.bench.profile`

    @property
    def ms(self) -> float:
        return sum(each.ms for each in self.operators)


class BenchResult(Frozen):
    machine: BenchMachine
    settings: BenchSettings
    subjects: tuple[SubjectResult, ...]  # reference first
    profiles: tuple[PassProfile, ...] = ()  # if asked for


def render(result: BenchResult) -> str:
    machine, settings = result.machine, result.settings
    subjects = [
        (
            subject.name,
            f"{subject.runtime} {subject.variant}".strip(),
            subject.on,
            str(subject.threads),
            f"{subject.cold_start_s:.2f}",
            f"{subject.peak_memory_bytes / 1e6:.0f}",
        )
        for subject in result.subjects
    ]
    lines = [
        ", ".join([machine.cpu.model, f"{machine.cores.usable} cores", *machine.nvidia.devices]),
        ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
        f"{settings.rounds} rounds in turns, {settings.seconds:g} s a turn after 3 calls that do not count; "
        f"cold start: median of {settings.starts}, from the process to the first answer",
        "",
        aligned([_SUBJECT_TITLES, *subjects], left=(0, 1, 2)),
        "",
        aligned([_CASE_TITLES, *_case_rows(result.subjects)], left=(2,)),
        *(f"note: {subject.name}: {note}" for subject in result.subjects for note in subject.notes),
    ]
    return "\n".join(lines)


def _case_rows(subjects: Sequence[SubjectResult]) -> list[tuple[str, ...]]:
    cases = [(case, subject.name) for subject in subjects for case in subject.cases]
    cases.sort(key=lambda entry: (entry[0].length, entry[0].batch))  # stable: subjects keep their order
    return [
        (
            str(case.tokens),
            str(case.batch),
            name,
            *(f"{milliseconds:.2f}" for milliseconds in (case.p50_ms, case.p95_ms, case.p99_ms)),
            f"{case.rows_per_second:.0f}",
            number(case.against_first, 2),
            number(case.peak_share, 0, 100),
        )
        for case, name in cases
    ]

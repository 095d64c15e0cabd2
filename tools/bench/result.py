"""The result of a benchmark: what `kdc bench --json` prints."""

from __future__ import annotations

from kdc.common.frozen import Frozen
from kdc.common.machine import Cores, Cpu, Nvidia


class Loaded(Frozen):
    """What a subject's process says of the model that it loaded.

    Attributes:
        runtime: "onnxruntime" or "torch".
        variant: of an artifact (fp32, int8, fp16), or the data type of a model in torch.
        on: the execution provider, or torch's device.
        threads: of one forward pass.
        notes: what the engine remarked while it loaded the model.
        longest: most tokens that a row may have.
    """

    runtime: str
    variant: str
    on: str
    threads: int
    notes: tuple[str, ...]
    longest: int


class Turn(Frozen):
    """One turn of one subject at one case.

    Attributes:
        tokens: of each row, special tokens included.
        ms: milliseconds of every call that was timed.
    """

    tokens: int
    ms: tuple[float, ...]

    def rows_per_second(self, batch: int) -> float:
        """Throughput with `batch` rows a call."""
        return 1000 * batch * len(self.ms) / sum(self.ms)


class CaseResult(Frozen):
    """One subject at one case, over all rounds.

    Attributes:
        batch: rows a call.
        length: tokens a row that were asked for.
        tokens: tokens a row that were measured: as near to `length` as words get.
        calls: that were timed.
        p50_ms, p95_ms, p99_ms: percentiles of the calls' latencies.
        rows_per_second: median of the rounds.
        against_first: rows a second divided by those of the first subject, the median of the ratios within each round;
            None where the first subject does not take rows of this length.
    """

    batch: int
    length: int
    tokens: int
    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rows_per_second: float
    against_first: float | None


class SubjectResult(Loaded):
    """One subject.

    Attributes:
        name: in tables.
        path: its folder.
        cold_start_s: median seconds from the start of the process to the first answer.
        peak_memory_bytes: most resident memory of its process.
        cases: those whose rows are not too long for it.
    """

    name: str
    path: str
    cold_start_s: float
    peak_memory_bytes: int
    cases: tuple[CaseResult, ...]


class BenchSettings(Frozen):
    """How it was measured.

    Attributes:
        rounds: in each, every subject had one turn at every case.
        seconds: length of a turn.
        device: "auto", "cpu" or "cuda".
        starts: of each subject, for the cold start.
    """

    rounds: int
    seconds: float
    device: str
    starts: int


class BenchMachine(Frozen):
    """Where it was measured; `packages` holds versions by name."""

    cpu: Cpu
    cores: Cores
    nvidia: Nvidia
    packages: dict[str, str]


class BenchResult(Frozen):
    """The whole benchmark.

    Attributes:
        machine: where it was measured.
        settings: how it was measured.
        subjects: in the order in which they were named; the others are compared with the first.
    """

    machine: BenchMachine
    settings: BenchSettings
    subjects: tuple[SubjectResult, ...]

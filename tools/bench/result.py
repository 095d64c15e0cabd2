"""The result of a benchmark: what `kdc bench --json` prints."""

from kdc.common.frozen import Frozen
from kdc.common.machine import Cores, Cpu, Nvidia


class Loaded(Frozen):
    """What a subject's process says of the model that it loaded."""

    runtime: str  # "onnxruntime" or "torch"
    variant: str  # of an artifact (fp32, int8, fp16), or the data type of a model in torch
    on: str  # the execution provider, or torch's device
    threads: int  # of one forward pass
    notes: tuple[str, ...]  # what the engine remarked while it loaded the model
    longest: int  # most tokens that a row may have


class Turn(Frozen):
    """One turn of one subject at one case."""

    tokens: int  # of each row, special tokens included
    ms: tuple[float, ...]  # milliseconds of every call that was timed

    def rows_per_second(self, batch: int) -> float:
        """Throughput with `batch` rows a call."""
        return 1000 * batch * len(self.ms) / sum(self.ms)


class CaseResult(Frozen):
    """One subject at one case, over all rounds.

    Attributes:
        p50_ms, p95_ms, p99_ms: percentiles of the calls' latencies.
        against_first: rows a second divided by those of the first subject, the median of the ratios within each
            round; None where the first subject does not take rows of this length.
    """

    batch: int  # rows a call
    length: int  # tokens a row that were asked for
    tokens: int  # tokens a row that were measured: as near to `length` as words get
    calls: int  # that were timed
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rows_per_second: float  # median of the rounds
    against_first: float | None


class SubjectResult(Loaded):
    """One subject."""

    name: str  # in tables
    path: str  # its folder
    cold_start_s: float  # median seconds from the start of the process to the first answer
    peak_memory_bytes: int  # most resident memory of its process
    cases: tuple[CaseResult, ...]  # those whose rows are not too long for it


class BenchSettings(Frozen):
    """How it was measured."""

    rounds: int  # in each, every subject had one turn at every case
    seconds: float  # length of a turn
    device: str  # "auto", "cpu" or "cuda"
    starts: int  # of each subject, for the cold start


class BenchMachine(Frozen):
    """Where it was measured; `packages` holds versions by name."""

    cpu: Cpu
    cores: Cores
    nvidia: Nvidia
    packages: dict[str, str]


class BenchResult(Frozen):
    """The whole benchmark."""

    machine: BenchMachine  # where it was measured
    settings: BenchSettings  # how it was measured
    subjects: tuple[SubjectResult, ...]  # in the order in which they were named; the others are compared with the first

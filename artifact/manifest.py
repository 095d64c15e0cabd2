"""The manifest: what `manifest.json` in an artifact's folder says of the model, its files and what was measured.

`kdc.artifact.folder` reads and writes the file. The standard library and pydantic suffice: serving starts with it.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import MOST_TOKENS, MOST_WINDOWS
from kdc.artifact.decision import ABSTAINED, Abstention, LabelSets, OperatingPoint
from kdc.common.frozen import Frozen

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1024 * 1024
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

# One of several classes (softmax), any number of classes (sigmoid), a number.
Kind = Literal["classification", "multilabel", "regression"]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]
# The student by its number format; or a cascade of the student and a second model, as a CPU loads it, and in fp32.
VariantName = Literal["fp32", "int8", "fp16", "cascade", "cascade_fp32"]
Scalar = float | Annotated[int, Field(ge=-(2**63), lt=2**63)] | str | None
Join = Literal["mean", "max", "first", "noisy-or"]  # how the answers of a row's windows become one
MOST_LABELS = 10_000  # logits of 1,024 texts are then 41 MB; a column of data with more holds no classes
_MOST_ID = 2**31 - 1
_MOST_CELLS = 200  # rows and columns of the evaluation table; a run has about thirty
LEAST_WINDOW = 16  # tokens of a window, of which special tokens and what is kept leave room for some of the text

_SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# An artifact is one flat folder, so that no file name can lead out of it.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class TaskBase(Frozen):
    """What a model reads and answers: the part of a task that training and serving share.

    A regression model answers (label - `center`) / `spread`: prices train as well as ratings. The engine scales back.
    """

    name: str  # in commands, in run directories and in the artifact, for example "sst2"
    kind: Kind
    text: str = "text"  # name of the column with the (first) text
    text_pair: str | None = None  # name of the column with the second text; None for tasks with one text a row
    # class names in the order of the model's outputs; empty for regression
    labels: tuple[str, ...] = Field(default=(), max_length=MOST_LABELS)
    center: float = 0.0  # mean of regression's training labels; 0 for the other kinds
    spread: float = Field(default=1.0, gt=0)  # standard deviation of the same; 1 for the other kinds

    @property
    def outputs(self) -> int:
        """Width of the model's last layer."""
        return 1 if self.kind == "regression" else len(self.labels)

    @property
    def is_pair(self) -> bool:
        """Whether a row holds two texts."""
        return self.text_pair is not None

    @property
    def can_have_sets(self) -> bool:
        """Whether its rows can have sets of labels: of two labels a set says no more than an abstention."""
        return self.kind == "classification" and len(self.labels) > 2


class TaskInfo(TaskBase):
    """A task as the artifact has it: its labels are known."""

    metric: str = ""  # the one that decides
    points: tuple[OperatingPoint, ...] = ()  # labels that have a threshold of their own
    abstain: Abstention | None = None  # which rows are not answered; None if all are
    sets: LabelSets | None = None  # sets of labels that hold the true one

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        is_classes, labels = self.kind == "classification", self.labels
        fewest = {"classification": 2, "multilabel": 1, "regression": 0}[self.kind]
        if len(labels) < fewest or (self.kind == "regression" and labels):
            raise ValueError(f"a {self.kind} task cannot have {len(labels)} labels")
        if len(set(labels)) != len(labels):
            raise ValueError("two labels have the same name")
        named = [point.label for point in self.points]
        if len(set(named)) != len(named) or not set(named) <= set(labels):
            raise ValueError(f"operating points of {', '.join(named)} do not fit the labels {', '.join(labels)}")
        if named and is_classes and (len(named), len(labels)) != (1, 2):
            raise ValueError("only one of two classes can have an operating point")
        if self.abstain is not None:
            if not is_classes or named or ABSTAINED in labels:
                raise ValueError(f"only classes without operating points, none called {ABSTAINED}, can abstain")
            if len(self.abstain.shares) not in (0, len(labels)):
                raise ValueError("an abstention's shares do not fit the labels")
        if self.sets is not None and not self.can_have_sets:
            raise ValueError("only one of three classes or more can have sets of labels")
        return self


class Lineage(Frozen):
    """Where the model comes from."""

    teacher: str  # name of the model
    student: str
    recipe: str  # name of the distillation recipe
    data_fingerprint: str  # hash of the training and evaluation data
    seed: int  # seed of splits, initialisation, order and dropout
    packages: dict[str, str]  # name -> version, at the time of making
    cpu: str  # model name of the CPU that judged the int8 variant
    gpu: str | None = None  # name of the GPU that trained; None where a CPU did
    # share of the training rows that carry each label, in the order of the task's labels (they sum to 1 except in
    # multi-label tasks); None for regression
    label_share: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    trained: str  # number format and threads of the student's training; "" if nothing was trained


class FileInfo(Frozen):
    """Size in bytes and SHA-256 of one file of the artifact."""

    sha256: _SHA256
    size: int = Field(ge=0)


class LongTexts(Frozen):
    """A row of more tokens than `TokenizerInfo.max_length` is answered in windows of that length, each like a row of
    its own; their answers become one (`kdc.serving.engine.long_texts`)."""

    stride: int = Field(ge=1, le=MOST_TOKENS)  # tokens from the beginning of one window to that of the next
    windows: int = Field(ge=2, le=MOST_WINDOWS)  # of a row at most; what is longer is cut
    # first tokens of the text, such as a title, that stand in every window
    keep: int = Field(default=0, ge=0, le=MOST_TOKENS)
    join: tuple[Join, ...] = ("mean",)  # the way of each output, or one for all

    @property
    def text(self) -> str:
        """The windows in words."""
        kept = f", the first {self.keep} in each" if self.keep else ""
        return f"up to {self.windows} windows, {self.stride} tokens apart{kept}, joined by {', '.join(self.join)}"


class TokenizerInfo(Frozen):
    """How rows are cut and padded; `tokenizer.json` alone does not say it."""

    # tokens after which a row is cut, special tokens and both texts of a pair included
    max_length: int = Field(ge=3, le=MOST_TOKENS)
    pad_id: int = Field(ge=0, le=_MOST_ID)  # id of the token that pads the shorter rows of a batch (1 in RoBERTa)
    pad_token: str  # text of the token that pads
    pad_type_id: int = Field(default=0, ge=0, le=_MOST_ID)  # token type of padding
    token_type_ids: bool  # whether the graph takes token types (DistilBERT's does not)
    pad_side: Literal["left", "right"] = "right"  # the side that is padded
    truncation_side: Literal["left", "right"] = "right"  # the side that is cut
    long: LongTexts | None = None  # how longer rows are answered; None if they are cut

    @property
    def longest(self) -> int:
        """Tokens of the longest row that is not cut, special tokens and both texts of a pair included. A pair in
        windows has room for so many if its first text is short."""
        return longest_row(self.max_length, self.long)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of the graph that this tokenizer feeds, in order."""
        return ("input_ids", "attention_mask") + (("token_type_ids",) if self.token_type_ids else ())

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.long is not None and self.max_length < LEAST_WINDOW:
            raise ValueError(f"windows of {self.max_length} tokens; they have at least {LEAST_WINDOW}")
        return self


def longest_row(max_length: int, long: LongTexts | None) -> int:
    """Tokens of the longest row that is not cut."""
    return max_length if long is None else max_length + (long.windows - 1) * long.stride


class Second(Frozen):
    """The second model of a cascade: it answers the rows that the first one is not sure of, by the same
    `tokenizer.json`."""

    name: str  # what it is: the teacher itself, or another student
    file: str  # name of its ONNX file
    token_type_ids: bool  # whether its graph takes token types
    temperature: float = Field(ge=1e-6, le=1e6)  # its logits are divided by it before softmax or sigmoid
    # the first model answers a row from this sureness on: see `kdc.serving.engine.deciding.sureness`
    answered_from: float = Field(ge=0, le=1)
    share: float = Field(ge=0, le=1)  # of the rows of the tuning slice, those that go on to it

    @property
    def text(self) -> str:
        """The second model in words."""
        return f"{self.name}, for rows below {self.answered_from:.4f} ({100 * self.share:.0f} % of the tuning slice)"


class Variant(Frozen):
    """One ONNX file, or the two of a cascade, and what was measured through the engine that serves; None: not
    measured."""

    file: str  # name of the ONNX file
    second: Second | None = None  # the other model of a cascade; None if there is one model
    size_bytes: int = Field(ge=0)  # size of these files and `tokenizer.json` together
    metrics: dict[str, float] = Field(default_factory=dict)  # on the evaluation split, in points
    # largest absolute difference to the model that it was made from (fp32: of logits; others: of probabilities)
    parity: float | None = None
    batch_invariance: float | None = None  # largest difference of a row's probability alone and in a batch of 16
    opset: int  # version of ONNX's operators that the file needs
    ir: int  # version of the ONNX file format
    candidate: str | None = None  # name of the winning quantisation candidate; None where it is not int8 alone
    latency_p50_ms: float | None = None  # median latency of one row
    latency_p95_ms: float | None = None  # 95th percentile of the same
    rows_per_second: float | None = None  # rows answered in a second, in batches of 32
    peak_memory_mb: float | None = None  # peak memory of the process that ran it, in MB

    @property
    def graphs(self) -> set[str]:
        """Names of its ONNX files."""
        return {self.file} if self.second is None else {self.file, self.second.file}


class Manifest(Frozen):
    """Everything that an engine needs to know to load the model, and the measurements that go with it."""

    schema_version: int = SCHEMA_VERSION
    kdc_version: str  # version of kdc that made it
    task: TaskInfo
    lineage: Lineage
    files: dict[str, FileInfo]  # every file of the artifact by name; `manifest.json` itself is not in it
    tokenizer: TokenizerInfo
    input_names: tuple[str, ...]  # inputs of the graphs, in order
    variants: dict[VariantName, Variant]
    providers: dict[str, str]  # execution provider -> the variant that it should load
    # logits are divided by it before softmax or sigmoid (fitted on the tuning slice)
    temperature: float = Field(default=1.0, ge=1e-6, le=1e6)
    # the evaluation table: row ("teacher", "student", "merged", ...) -> column -> value
    metrics: dict[str, Annotated[dict[str, Scalar], Field(max_length=_MOST_CELLS)]] = Field(
        default_factory=dict, max_length=_MOST_CELLS
    )
    contract: Judgement | None = None  # what was asked and whether it was kept; None if nothing was asked
    created: str  # time of making, UTC, ISO 8601
    sha256: str = ""  # SHA-256 of the canonical JSON without this field. It reveals corruption, not forgery

    @property
    def second(self) -> Second | None:
        """The second model that a CPU asks; None if it loads one model."""
        loaded = self.providers[CPU_PROVIDER]
        return next((variant.second for name, variant in self.variants.items() if name == loaded), None)

    @property
    def size_bytes(self) -> int:
        """Size of all files together, without `manifest.json` itself."""
        return sum(file.size for file in self.files.values())

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        for name in self.files:
            if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST_NAME:
                raise ValueError(f"file name {name!r} is not a plain name inside the artifact")
        if len({name.lower() for name in self.files}) < len(self.files):
            raise ValueError("two files have names that differ by upper and lower case alone: some disks have one")
        if "tokenizer.json" not in self.files:
            raise ValueError("files does not list tokenizer.json")
        for name, variant in self.variants.items():
            if missing := variant.graphs - self.files.keys():
                raise ValueError(f"variant {name} names {missing.pop()!r}, which files does not list")
            if (variant.second is not None) is not name.startswith("cascade"):
                raise ValueError(f"variant {name} has {'no' if variant.second is None else 'a'} second model")
            if variant.second is not None and self.task.kind == "regression":
                raise ValueError("a number has no sureness by which a second model could be asked")
        if CPU_PROVIDER not in self.providers:
            raise ValueError(f"providers has no variant for {CPU_PROVIDER}")
        for provider, chosen in self.providers.items():
            if chosen not in self.variants:
                raise ValueError(f"provider {provider} names the variant {chosen!r}, which variants does not list")
        if self.input_names != self.tokenizer.input_names:
            raise ValueError(f"input_names {self.input_names} does not fit the tokenizer {self.tokenizer.input_names}")
        if (long := self.tokenizer.long) is not None:
            ways = 1 if self.task.kind == "classification" else self.task.outputs
            if len(long.join) not in (1, ways) or (self.task.kind == "regression" and "noisy-or" in long.join):
                raise ValueError(f"the windows of a {self.task.kind} task cannot be joined by {', '.join(long.join)}")
        shares = self.lineage.label_share
        if shares is not None and len(shares) != len(self.task.labels):
            raise ValueError(f"lineage has label shares of {len(shares)} labels, the task has {len(self.task.labels)}")
        return self

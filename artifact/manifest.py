"""The manifest, `manifest.json`: what an artifact is, its files and its measurements.

Serving starts with this module, so it imports only pydantic and the standard library.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import MOST_TOKENS, MOST_WINDOWS
from kdc.artifact.decision import ABSTAINED, Abstention, LabelSets, OperatingPoint, SliceFigures
from kdc.artifact.question import Question, misfit
from kdc.artifact.task_kinds import KINDS, TaskKind
from kdc.artifact.task_kinds import Kind as Kind
from kdc.common.frozen import Frozen

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "signature.json"
MAX_MANIFEST_BYTES = 1024 * 1024
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
# The student in a number format, or a cascade of two models: as CPUs load it, or in fp32.
VariantName = Literal["fp32", "int8", "fp16", "cascade", "cascade_fp32"]
Scalar = float | Annotated[int, Field(ge=-(2**63), lt=2**63)] | str | None
Join = Literal["mean", "max", "first", "noisy-or"]  # how the answers of a row's windows are combined
MOST_LABELS = 10_000  # logits of 1,024 texts then take 41 MB
_MOST_ID = 2**31 - 1
_MOST_CELLS = 200
LEAST_WINDOW = 16  # tokens; leaves room for text beside special and kept tokens

_SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# No path separator, so no name leads out of the folder.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class TaskBase(Frozen):
    """What a model reads and answers. A regression model predicts (label - `center`) / `spread`."""

    name: str
    kind: Kind
    text: str = "text"  # column of the (first) text
    text_pair: str | None = None  # None for single texts
    # In output order; empty for regression.
    labels: tuple[str, ...] = Field(default=(), max_length=MOST_LABELS)
    center: float = 0.0
    spread: float = Field(default=1.0, gt=0)

    @property
    def traits(self) -> TaskKind:
        return KINDS[self.kind]

    @property
    def outputs(self) -> int:
        return len(self.labels) if self.traits.has_labels else 1

    @property
    def is_pair(self) -> bool:
        return self.text_pair is not None

    @property
    def can_have_sets(self) -> bool:
        """Whether rows can have label sets. For two labels, an abstention says as much."""
        return self.traits.is_exclusive and len(self.labels) > 2


class TaskInfo(TaskBase):
    """An artifact's task."""

    metric: str = ""  # the deciding metric
    points: tuple[OperatingPoint, ...] = ()
    abstain: Abstention | None = None  # None: all rows are answered
    sets: LabelSets | None = None

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        traits, labels = self.traits, self.labels
        if len(labels) < traits.fewest_labels or (labels and not traits.has_labels):
            raise ValueError(f"a {self.kind} task cannot have {len(labels)} labels")
        if len(set(labels)) != len(labels):
            raise ValueError("two labels have the same name")
        named = [point.label for point in self.points]
        if len(set(named)) != len(named) or not set(named) <= set(labels):
            raise ValueError(f"operating points of {', '.join(named)} do not fit the labels {', '.join(labels)}")
        if named and traits.is_exclusive and (len(named), len(labels)) != (1, 2):
            raise ValueError("only one of two classes can have an operating point")
        if self.abstain is not None:
            if not traits.is_exclusive or named or ABSTAINED in labels:
                raise ValueError(f"only classes without operating points, none called {ABSTAINED}, can abstain")
            if len(self.abstain.shares) not in (0, len(labels)):
                raise ValueError("an abstention's shares do not fit the labels")
        if self.sets is not None and not self.can_have_sets:
            raise ValueError("only one of three classes or more can have sets of labels")
        return self


class Lineage(Frozen):
    """The model's origin."""

    teacher: str
    student: str
    recipe: str  # of distillation
    data_fingerprint: str  # hash of training and evaluation data
    seed: int  # of splits, weights, order, dropout
    packages: dict[str, str]
    cpu: str  # model that judged the int8 variant
    gpu: str | None = None  # None if a CPU trained
    # Share of training rows with each label. None for regression.
    label_share: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    # Who labelled the evaluation rows: "people", "model:NAME", or None if kdc does not know.
    labels: str | None = Field(None, max_length=300)
    trained: str  # number format and threads; "" if nothing was trained


class FileInfo(Frozen):
    sha256: _SHA256
    size: int = Field(ge=0)


class LongTexts(Frozen):
    """Rows of more than `TokenizerInfo.max_length` tokens are answered in windows (`kdc.serving.engine.long_texts`)."""

    stride: int = Field(ge=1, le=MOST_TOKENS)  # tokens between window starts
    windows: int = Field(ge=2, le=MOST_WINDOWS)  # the rest is cut
    # First tokens repeated in every window.
    keep: int = Field(default=0, ge=0, le=MOST_TOKENS)
    join: tuple[Join, ...] = ("mean",)  # one for each output, or one for all

    @property
    def text(self) -> str:
        kept = f", the first {self.keep} in each" if self.keep else ""
        return f"up to {self.windows} windows, {self.stride} tokens apart{kept}, joined by {', '.join(self.join)}"


class TokenizerInfo(Frozen):
    """What `tokenizer.json` does not say about rows."""

    # Tokens of a row, with special tokens and both texts.
    max_length: int = Field(ge=3, le=MOST_TOKENS)
    pad_id: int = Field(ge=0, le=_MOST_ID)  # 1 in RoBERTa
    pad_token: str
    pad_type_id: int = Field(default=0, ge=0, le=_MOST_ID)
    token_type_ids: bool
    pad_side: Literal["left", "right"] = "right"
    truncation_side: Literal["left", "right"] = "right"
    long: LongTexts | None = None  # None: longer rows are cut

    @property
    def longest(self) -> int:
        """Tokens of the longest uncut row. A pair in windows may be this long only if one text is short."""
        return longest_row(self.max_length, self.long)

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("input_ids", "attention_mask") + (("token_type_ids",) if self.token_type_ids else ())

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.long is not None and self.max_length < LEAST_WINDOW:
            raise ValueError(f"windows of {self.max_length} tokens; they have at least {LEAST_WINDOW}")
        return self


def longest_row(max_length: int, long: LongTexts | None) -> int:
    return max_length if long is None else max_length + (long.windows - 1) * long.stride


class Second(Frozen):
    """A cascade's second model. It uses the same `tokenizer.json`."""

    name: str  # teacher or another student
    file: str
    token_type_ids: bool
    temperature: float = Field(ge=1e-6, le=1e6)
    # The first model answers rows of at least this `kdc.serving.engine.deciding.sureness`.
    answered_from: float = Field(ge=0, le=1)
    share: float = Field(ge=0, le=1)  # of tuning rows that the second model answers

    @property
    def text(self) -> str:
        return f"{self.name}, for rows below {self.answered_from:.4f} ({100 * self.share:.0f} % of the tuning set)"


class Variant(Frozen):
    """One ONNX file, or a cascade's two. None: not measured."""

    file: str
    second: Second | None = None  # of a cascade
    size_bytes: int = Field(ge=0)  # of ONNX files and `tokenizer.json`
    metrics: dict[str, float] = Field(default_factory=dict)  # points, on the evaluation set
    # Largest absolute difference from its source: of logits for fp32, else of probabilities.
    parity: float | None = None
    batch_invariance: float | None = None  # largest difference of a probability, alone and in a batch
    opset: int  # ONNX operator version
    ir: int  # ONNX format version
    candidate: str | None = None  # winning int8 candidate
    latency_p50_ms: float | None = None  # of one row
    latency_p95_ms: float | None = None  # of one row
    rows_per_second: float | None = None  # in batches of 32
    peak_memory_mb: float | None = None  # of the process

    @property
    def graphs(self) -> set[str]:
        return {self.file} if self.second is None else {self.file, self.second.file}


class Manifest(Frozen):
    schema_version: int = SCHEMA_VERSION
    kdc_version: str
    task: TaskInfo
    questions: tuple[Question, ...] = ()  # of a multi-label task, one for each label
    lineage: Lineage
    files: dict[str, FileInfo]  # all but `manifest.json` and `signature.json`
    tokenizer: TokenizerInfo
    input_names: tuple[str, ...]
    variants: dict[VariantName, Variant]
    providers: dict[str, str]  # execution provider -> variant
    # Divides logits before softmax or sigmoid; from the tuning set. 1 if it is in the graphs already.
    temperature: float = Field(default=1.0, ge=1e-6, le=1e6)
    folded_temperature: float | None = Field(None, ge=1e-6, le=1e6)  # that the graphs' logits are divided by
    # Evaluation table: model -> column -> value.
    metrics: dict[str, Annotated[dict[str, Scalar], Field(max_length=_MOST_CELLS)]] = Field(
        default_factory=dict, max_length=_MOST_CELLS
    )
    slices: tuple[SliceFigures, ...] = Field((), max_length=_MOST_CELLS)
    contract: Judgement | None = None
    created: str  # UTC, ISO 8601
    sha256: str = ""  # of the other fields; reveals corruption, not forgery

    @property
    def second(self) -> Second | None:
        """The second model on CPUs."""
        loaded = self.providers[CPU_PROVIDER]
        return next((variant.second for name, variant in self.variants.items() if name == loaded), None)

    @property
    def fitted_temperature(self) -> float:
        return self.temperature * (self.folded_temperature or 1.0)

    @property
    def size_bytes(self) -> int:
        """Without `manifest.json`."""
        return sum(file.size for file in self.files.values())

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        for name in self.files:
            if not _PLAIN_NAME.fullmatch(name) or name in (MANIFEST_NAME, SIGNATURE_NAME):
                raise ValueError(f"file name {name!r} is not a plain name inside the artifact")
        if len({name.lower() for name in self.files}) < len(self.files):
            raise ValueError("two file names differ only in upper and lower case: some disks keep just one")
        if "tokenizer.json" not in self.files:
            raise ValueError("files does not list tokenizer.json")
        for name, variant in self.variants.items():
            if missing := variant.graphs - self.files.keys():
                raise ValueError(f"variant {name} names {missing.pop()!r}, which files does not list")
            if (variant.second is not None) is not name.startswith("cascade"):
                raise ValueError(f"variant {name} has {'no' if variant.second is None else 'a'} second model")
            if variant.second is not None and not self.task.traits.has_labels:
                raise ValueError("a regression has no confidence, so it can have no second model")
        if CPU_PROVIDER not in self.providers:
            raise ValueError(f"providers has no variant for {CPU_PROVIDER}")
        for provider, chosen in self.providers.items():
            if chosen not in self.variants:
                raise ValueError(f"provider {provider} names the variant {chosen!r}, which variants does not list")
        if self.input_names != self.tokenizer.input_names:
            raise ValueError(f"input_names {self.input_names} does not fit the tokenizer {self.tokenizer.input_names}")
        if (long := self.tokenizer.long) is not None:
            ways = 1 if self.task.traits.is_exclusive else self.task.outputs
            if len(long.join) not in (1, ways) or ("noisy-or" in long.join and not self.task.traits.has_labels):
                raise ValueError(f"the windows of a {self.task.kind} task cannot be joined by {', '.join(long.join)}")
        task = self.task
        if wrong := misfit(self.questions, task.labels, task.traits, is_pair=task.is_pair):
            raise ValueError(wrong)
        shares = self.lineage.label_share
        if shares is not None and len(shares) != len(self.task.labels):
            raise ValueError(f"lineage has label shares of {len(shares)} labels, the task has {len(self.task.labels)}")
        return self

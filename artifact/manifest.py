"""The manifest: what `manifest.json` in an artifact's folder says of the model, its files and what was measured.

Only the models are here; `kdc.artifact.folder` reads and writes the file. Light on purpose (standard library and
pydantic), because the serving half starts with it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdc.artifact.contract.judgement import Judgement
from kdc.common.frozen import Frozen

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1024 * 1024
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

Kind = Literal["classification", "multilabel", "regression"]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]
Scalar = float | int | str | None

_SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# An artifact is one flat folder, so that no file name can lead out of it.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class TaskBase(Frozen):
    """What a model reads and answers: the part of a task that training and serving share.

    Attributes:
        name: the name in commands, in run directories and in the artifact, for example "sst2".
        kind: "classification" (one of several classes, by softmax), "multilabel" (any number of them, by sigmoid) or
            "regression" (a number).
        text: name of the column with the (first) text.
        text_pair: name of the column with the second text; None for tasks with one text a row.
        labels: class names in the order of the model's outputs; empty for regression.
        center, spread: mean and standard deviation of regression's training labels. The model learns and answers
            (label - center) / spread, so that prices train as well as ratings, and the engine scales back. They are 0
            and 1 for the other kinds.
    """

    name: str
    kind: Kind
    text: str = "text"
    text_pair: str | None = None
    labels: tuple[str, ...] = ()
    center: float = 0.0
    spread: float = Field(default=1.0, gt=0)

    @property
    def outputs(self) -> int:
        """Width of the model's last layer."""
        return 1 if self.kind == "regression" else len(self.labels)

    @property
    def is_pair(self) -> bool:
        """Whether a row holds two texts."""
        return self.text_pair is not None


class TaskInfo(TaskBase):
    """A task as the artifact has it: its labels are known.

    Attributes:
        metric: name of the metric that decides.
    """

    metric: str = ""

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> TaskInfo:
        fewest = {"classification": 2, "multilabel": 1, "regression": 0}[self.kind]
        if len(self.labels) < fewest or (self.kind == "regression" and self.labels):
            raise ValueError(f"a {self.kind} task cannot have {len(self.labels)} labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("two labels have the same name")
        return self


class Lineage(Frozen):
    """Where the model comes from."""

    teacher: str
    student: str
    recipe: str
    data_fingerprint: str
    seed: int
    packages: dict[str, str] = Field(description="package name -> version, at the time of making")
    cpu: str = Field(description="model name of the CPU that judged the int8 variant")
    gpu: str | None = None
    label_share: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(
        None,
        description="share of the training rows that carry each label, in the order of the task's labels (their sum is "
        "1, for multi-label any); None for regression and in artifacts from before",
    )


class FileInfo(Frozen):
    """Size in bytes and SHA-256 of one file of the artifact."""

    sha256: _SHA256
    size: int = Field(ge=0)


class TokenizerInfo(Frozen):
    """What `tokenizer.json` alone does not settle: how rows are cut and padded.

    Attributes:
        max_length: tokens after which a row is cut, special tokens included (both texts together for pairs).
        pad_id: id that fills the shorter rows of a batch (RoBERTa's is 1).
        pad_token: its spelling.
        pad_type_id: token type of padding.
        token_type_ids: whether the graph takes token types (DistilBERT's does not).
        pad_side: the side that is filled.
        truncation_side: the side that is cut.
    """

    max_length: int = Field(ge=3)
    pad_id: int = Field(ge=0)
    pad_token: str
    pad_type_id: int = Field(default=0, ge=0)
    token_type_ids: bool
    pad_side: Literal["left", "right"] = "right"
    truncation_side: Literal["left", "right"] = "right"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of the graph that such a tokenizer feeds, in order."""
        return ("input_ids", "attention_mask") + (("token_type_ids",) if self.token_type_ids else ())


class Variant(Frozen):
    """One ONNX file and what was measured of it through `kdc.serving.engine.engine`.

    Attributes:
        file: name of the ONNX file.
        size_bytes: that file plus `tokenizer.json`.
        metrics: metric name -> value on the evaluation split.
        parity: largest absolute difference to the model that it was made from (fp32: logits; others: probabilities).
        batch_invariance: largest difference of a row's probability alone and in a batch of 16; None: not measured.
        candidate: name of the winning quantisation candidate; None for fp32 and fp16.
        latency_p50_ms: median of one row at a time; None where no machine could measure it.
        latency_p95_ms: 95th percentile of the same.
        rows_per_second: at batch 32.
        peak_memory_mb: of the process that ran it.
    """

    file: str
    size_bytes: int = Field(ge=0)
    metrics: dict[str, float] = Field(default_factory=dict)
    parity: float | None = None
    batch_invariance: float | None = None
    candidate: str | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    rows_per_second: float | None = None
    peak_memory_mb: float | None = None


class Manifest(Frozen):
    """Everything that the loading side needs to know, and the proof that goes with it.

    Attributes:
        kdc_version: the version of kdc that made it.
        files: file name -> size and SHA-256; `manifest.json` itself is not in it.
        input_names: inputs of the graphs, in order.
        variants: "fp32", "int8", "fp16" -> measured variant.
        providers: execution provider -> the variant that it should load.
        temperature: logits are divided by it before softmax or sigmoid (fitted on the tuning slice).
        metrics: row of the evaluation table ("teacher", "student", "merged", ...) -> its columns.
        contract: what was asked of it, and how it kept that; None where nothing was asked.
        created: UTC, ISO 8601.
        sha256: of this manifest's canonical JSON without this field. It finds corruption, not forgery.
    """

    schema_version: int = SCHEMA_VERSION
    kdc_version: str
    task: TaskInfo
    lineage: Lineage
    files: dict[str, FileInfo]
    tokenizer: TokenizerInfo
    input_names: tuple[str, ...]
    variants: dict[Literal["fp32", "int8", "fp16"], Variant]
    providers: dict[str, str]
    temperature: float = Field(default=1.0, gt=0)
    metrics: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    contract: Judgement | None = None
    created: str
    sha256: str = ""

    @property
    def max_length(self) -> int:
        """Tokens after which a row is cut."""
        return self.tokenizer.max_length

    @property
    def size_bytes(self) -> int:
        """Size of all files together, without `manifest.json` itself."""
        return sum(file.size for file in self.files.values())

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Manifest:
        for name in self.files:
            if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST_NAME:
                raise ValueError(f"file name {name!r} is not a plain name inside the artifact")
        if "tokenizer.json" not in self.files:
            raise ValueError("files does not list tokenizer.json")
        for name, variant in self.variants.items():
            if variant.file not in self.files:
                raise ValueError(f"variant {name} names {variant.file!r}, which files does not list")
        if CPU_PROVIDER not in self.providers:
            raise ValueError(f"providers has no variant for {CPU_PROVIDER}")
        for provider, chosen in self.providers.items():
            if chosen not in self.variants:
                raise ValueError(f"provider {provider} names the variant {chosen!r}, which variants does not list")
        if self.input_names != self.tokenizer.input_names:
            raise ValueError(f"input_names {self.input_names} does not fit the tokenizer {self.tokenizer.input_names}")
        shares = self.lineage.label_share
        if shares is not None and len(shares) != len(self.task.labels):
            raise ValueError(f"lineage has label shares of {len(shares)} labels, the task has {len(self.task.labels)}")
        return self

"""The artifact: the folder that `kdc compress` makes and `kdc serve` loads, and the manifest that describes it.

Reads and writes `manifest.json`; reads every file that it names to check size and SHA-256.
Light on purpose (standard library and pydantic): the serving half starts with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdc.artifact.contract.judgement import Judgement
from kdc.common.errors import InputError, KdcError

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
_REMAKE = "make the artifact again with `kdc compress`, or copy it again from where it came"
# An artifact is one flat folder: a name can then never lead out of it.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskInfo(_Section):
    """What the model answers.

    Attributes:
        name: the task's name, e.g. "sst2".
        kind: "classification" (softmax), "multilabel" (sigmoid) or "regression" (the number itself).
        text: column name of the (first) text.
        text_pair: column name of the second text; None for single-text tasks.
        labels: class names in the order of the outputs; empty for regression.
        metric: name of the metric that decides.
        center, spread: regression's answer is output * spread + center; 0 and 1 elsewhere.
    """

    name: str
    kind: Kind
    text: str = "text"
    text_pair: str | None = None
    labels: tuple[str, ...] = ()
    metric: str = ""
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

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> TaskInfo:
        fewest = {"classification": 2, "multilabel": 1, "regression": 0}[self.kind]
        if len(self.labels) < fewest or (self.kind == "regression" and self.labels):
            raise ValueError(f"a {self.kind} task cannot have {len(self.labels)} labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("two labels have the same name")
        return self


class Lineage(_Section):
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


class FileInfo(_Section):
    """Size in bytes and SHA-256 of one file of the artifact."""

    sha256: _SHA256
    size: int = Field(ge=0)


class TokenizerInfo(_Section):
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


class Variant(_Section):
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
    metrics: dict[str, float] = {}
    parity: float | None = None
    batch_invariance: float | None = None
    candidate: str | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    rows_per_second: float | None = None
    peak_memory_mb: float | None = None


class Manifest(_Section):
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
    metrics: dict[str, dict[str, Scalar]] = {}
    contract: Judgement | None = None
    created: str
    sha256: str = ""

    @property
    def max_length(self) -> int:
        """Tokens after which a row is cut."""
        return self.tokenizer.max_length

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


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, FileInfo]:
    """Size and SHA-256 of files in `folder`, for `Manifest.files`."""
    return {name: FileInfo(sha256=_sha256_of(folder / name), size=(folder / name).stat().st_size) for name in names}


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json` atomically: it is there whole, or not at all.

    Args:
        folder: the artifact; its other files are already in it.
        manifest: its `sha256` is filled in here.

    Returns:
        The manifest with its `sha256`.

    Raises:
        KdcError: a file that the manifest names is missing or differs, or the manifest is larger than 1 MiB.
    """
    document = manifest.model_dump(mode="json")
    document["sha256"] = _canonical_sha256(document)
    content = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    if len(content) > MAX_MANIFEST_BYTES:
        raise KdcError(
            "the manifest is too large",
            given=f"{len(content)} bytes",
            remedy=f"keep it under {MAX_MANIFEST_BYTES} bytes: shorter label names, fewer table rows",
        )
    _check_files(folder, manifest, hashes=True)
    _replace_file(folder / MANIFEST_NAME, content)
    return manifest.model_copy(update={"sha256": document["sha256"]})


def load_manifest(folder: Path, *, verify: bool = True, expect_sha256: str | None = None) -> Manifest:
    """Read `manifest.json` and check that the artifact is whole.

    Args:
        folder: the artifact.
        verify: also read every file and compare its SHA-256 (names, presence and sizes are always compared).
        expect_sha256: the manifest's `sha256` as its maker told it; guards against a forged artifact.

    Raises:
        InputError: there is no artifact at `folder`, or it is not the one that `expect_sha256` names.
        KdcError: the manifest or a file is damaged, missing, or of a schema that this version does not know.
    """
    path = folder / MANIFEST_NAME
    manifest = parse_manifest(_read_bounded(path), path, expect_sha256=expect_sha256)
    try:
        _check_files(folder, manifest, hashes=verify)
    except OSError as error:
        raise KdcError(
            "a file of the artifact cannot be read",
            given=f"{error.filename}: {error.strerror}",
            remedy="see that this user may read it: `chmod -R a+rX` of the artifact",
        ) from error
    return manifest


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            "there is no artifact here",
            given=path.parent,
            remedy=f"give the folder that holds {MANIFEST_NAME}, e.g. `runs/sst2/artifact`",
        ) from error
    except OSError as error:
        raise KdcError("the manifest cannot be read", given=f"{path}: {error}", remedy=_REMAKE) from error


def parse_manifest(content: bytes, path: object, *, expect_sha256: str | None = None) -> Manifest:
    """The manifest in a file's bytes, by itself: the files that it names are not looked at.

    Args:
        content: of `manifest.json`.
        path: where it comes from, for messages.
        expect_sha256: as `load_manifest` takes it.

    Raises:
        InputError: it is not the one that `expect_sha256` names.
        KdcError: it is too large, damaged, or of a schema that this version does not know.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise KdcError("the manifest is too large", given=f"{path}: over {MAX_MANIFEST_BYTES} bytes", remedy=_REMAKE)
    manifest = _parse(path, content)
    if expect_sha256 is not None and manifest.sha256 != expect_sha256.strip().lower():
        raise InputError(
            "this is not the artifact that was expected",
            given=f"manifest SHA-256 {manifest.sha256}, expected {expect_sha256}",
            remedy="fetch the artifact again, or pass the SHA-256 that `kdc inspect` prints for a copy that you trust",
        )
    return manifest


def _parse(path: object, content: bytes) -> Manifest:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise KdcError("the manifest is not valid JSON", given=f"{path}: {error}", remedy=_REMAKE) from error
    if not isinstance(document, dict):
        raise KdcError("the manifest is not a JSON object", given=path, remedy=_REMAKE)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise KdcError(
            "the manifest has a schema version that this kdc does not know",
            given=f"{path}: schema_version {document.get('schema_version')!r}, known: {SCHEMA_VERSION}",
            remedy="install the kdc that made the artifact, or make the artifact again with this one",
        )
    if document.get("sha256") != _canonical_sha256(document):
        raise KdcError("the manifest does not match its own SHA-256: it was changed", given=path, remedy=_REMAKE)
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise KdcError(
            "the manifest does not follow its schema", given=f"{path}: {problems}", remedy=_REMAKE
        ) from error


def _canonical_sha256(document: dict[str, Any]) -> str:
    """SHA-256 of the document without its own `sha256`: sorted keys, no spaces, UTF-8."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(folder: Path, manifest: Manifest, *, hashes: bool) -> None:
    root = folder.resolve()
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise KdcError("a file of the artifact is missing", given=path, remedy=_REMAKE)
        if not path.resolve().is_relative_to(root):
            raise KdcError(
                "a file of the artifact is a link that leaves it", given=path, remedy="replace it by a copy of the file"
            )
        size = path.stat().st_size
        if size != expected.size:
            raise KdcError(
                "a file of the artifact has the wrong size",
                given=f"{path}: {size} bytes, the manifest says {expected.size}",
                remedy=_REMAKE,
            )
        if hashes and (digest := _sha256_of(path)) != expected.sha256:
            raise KdcError(
                "a file of the artifact was changed",
                given=f"{path}: SHA-256 {digest}, the manifest says {expected.sha256}",
                remedy=_REMAKE,
            )


def _replace_file(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, rename onto it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from a server that runs as another user
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise

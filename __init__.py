"""Make a large text classifier small and fast, prove what it kept, and use it.

    import kdc

    result = kdc.compress(task="pydocs", family="minilm")  # takes minutes
    engine = kdc.load(result.artifact)
    engine.predict([("What does `shutil.copytree` do?", "Recursively copy a directory tree.")])

Examples: docs/how-to/use-from-python.md. Importing this module loads nothing heavy. Only `compress`, `frontier`,
`judge`, and `verify` with rows need more than the serving install.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdc.common.errors import InputError, KdcError
from kdc.common.version import __version__

if TYPE_CHECKING:
    from os import PathLike

    from kdc.artifact.contract.judgement import Judgement
    from kdc.artifact.contract.terms import Contract
    from kdc.artifact.manifest import Device
    from kdc.pipeline.config.settings import Config
    from kdc.pipeline.quality.comparison import judge
    from kdc.pipeline.rundir.record import CompressResult, FrontierResult
    from kdc.serving.engine.engine import Engine

__all__ = [
    "Contract",
    "Engine",
    "InputError",
    "KdcError",
    "__version__",
    "compress",
    "frontier",
    "judge",
    "load",
    "verify",
]
_MODULES = {
    "Contract": "kdc.artifact.contract.terms",
    "Engine": "kdc.serving.engine.engine",
    "judge": "kdc.pipeline.quality.comparison",
}


def load(
    artifact: str | PathLike[str],
    *,
    variant: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    allow_failed: bool = False,
    expect_sha256: str | None = None,
) -> Engine:
    """Load an artifact, after checking every file against its manifest.

    Args:
        artifact: a folder, or an address as for `kdc pull`, which is fetched once into the cache (`KDC_CACHE`).
        variant: "fp32", "int8", "fp16" or "cascade" (two models); None: the manifest's choice for the device.
        device: "auto" (CUDA if it starts, else the CPU), "cpu", "cuda" or "tensorrt".
        threads: threads of a forward pass; None: all usable cores.
        allow_failed: accept an artifact that failed its contract.
        expect_sha256: the SHA-256 that the manifest must have.

    Raises:
        InputError: the artifact is missing, not the expected one, or failed its contract.
        KdcError: the artifact is damaged, or the device did not start.
    """
    from kdc.artifact.contract.text import refuse_failed
    from kdc.artifact.stores.addresses import is_address
    from kdc.serving.engine.engine import Engine

    folder = str(artifact)
    if is_address(folder):
        from kdc.artifact.stores.transfer import cached

        folder = str(cached(folder, folder, allow_failed=allow_failed))
    engine = Engine.load(folder, variant=variant, device=device, threads=threads, expect_sha256=expect_sha256)
    if engine.manifest is not None:
        refuse_failed(engine.manifest.contract, allow=allow_failed)
    return engine


def compress(
    *,
    config: str | PathLike[str] | None = None,
    contract: Contract | None = None,
    start_from: str | None = None,
    until: str | None = None,
    force: bool = False,
    **settings: Any,
) -> CompressResult:
    """Make an artifact from labelled rows, like `kdc compress`. Progress goes to stderr. The same call again resumes
    the run. A failed contract is no error.

    Args:
        config: TOML file with settings; other arguments override it.
        contract: what the artifact must keep; single limits work too (`max_drop=1.0`).
        start_from: redo this stage and all later ones.
        until: stop after this stage, without an artifact.
        force: redo all stages.
        **settings: any setting of `kdc config`, such as `task` or `train`. If several sections share a name, give it
            in its section: `student={"epochs": 2}`. `train`, `eval` and `unlabeled` also take rows in memory: lists
            of texts and labels, `(texts, labels)`, a pandas or polars DataFrame, or a `datasets.Dataset`.

    Returns:
        The artifact's path, every model's metrics, and the contract's judgement.

    Raises:
        InputError: a setting, a file or a row is wrong.
        KdcError: a stage failed.
    """
    resolved = _resolved(config, contract, settings)
    from kdc.pipeline.compress import compress_for_people

    return compress_for_people(resolved, start_from=start_from, until=until, force=force)


def frontier(
    *,
    config: str | PathLike[str] | None = None,
    start_from: str | None = None,
    force: bool = False,
    **settings: Any,
) -> FrontierResult:
    """Make and compare artifacts from the teacher to a student without layers, like `kdc compress --frontier`. Takes
    the settings of `compress`, but no limits. `student={"hours": 2}` bounds all students' trainings together.

    Returns:
        The points with scores, costs and confidence intervals. `artifact(student)` is a point's folder.

    Raises:
        InputError: a setting, a file or a row is wrong.
        KdcError: a shared stage failed, or every point did.
    """
    resolved = _resolved(config, None, settings)
    from kdc.pipeline.compress import frontier_for_people

    return frontier_for_people(resolved, start_from=start_from, force=force)


def _resolved(config: str | PathLike[str] | None, contract: Contract | None, settings: dict[str, Any]) -> Config:
    from os import PathLike
    from pathlib import Path

    from kdc.pipeline.config import resolve

    layer = resolve.layer_of_keywords(settings)
    if contract is not None:
        terms = contract.model_dump(exclude_none=True)
        layer["contract"] = terms.pop("limits") | terms | layer.get("contract", {})
    file = resolve.read_file(Path(config)) if config is not None else {}
    held = {
        split: rows
        for split, rows in layer.get("data", {}).items()
        if split in ("train", "eval", "unlabeled") and not isinstance(rows, str | PathLike | None)
    }
    if not held:
        return resolve.resolve(flags=layer, sets={}, file=file)
    from kdc.pipeline.rundir.given import resolve_with_rows

    return resolve_with_rows(held, layer, file)


def verify(
    artifact: str | PathLike[str],
    *,
    contract: Contract | None = None,
    data: str | PathLike[str] | None = None,
    teacher: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    separator: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    device: Device | None = None,
    expect_sha256: str | None = None,
) -> Judgement:
    """Judge an artifact on this machine: hashes, size, speed, and with labelled rows its quality.

    Args:
        artifact: the artifact's folder.
        contract: replaces the artifact's own.
        data: file with labelled rows; without one, the earlier quality stands.
        teacher: hub id or path, needed for rows that the artifact was not evaluated on.
        text, text_pair, label, separator: columns of that file, if not named as in training.
        delimiter, encoding: how that file is written, if not with commas (.csv) or tabs (.tsv) in UTF-8.
        device: "cpu", "cuda" or "auto"; None: where the contract was judged before.
        expect_sha256: the SHA-256 that the manifest must have.

    Returns:
        The judgement; its `verdict` is "pass", "fail" or "not shown".

    Raises:
        InputError: there is no contract, a file does not fit, or its rows need a teacher.
        KdcError: the artifact is damaged.
    """
    from pathlib import Path

    from kdc.tools.verify import verify_artifact

    judgement, _ = verify_artifact(
        Path(artifact),
        contract=contract,
        data=None if data is None else Path(data),
        teacher=teacher,
        columns={
            "text": text,
            "text_pair": text_pair,
            "label": label,
            "separator": separator,
            "delimiter": delimiter,
            "encoding": encoding,
        },
        device=device,
        expect_sha256=expect_sha256,
    )
    return judgement


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

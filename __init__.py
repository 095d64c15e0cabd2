"""Make a large text classifier small and fast, prove what was kept, and use it.

    import kdc

    result = kdc.compress(task="pydocs", family="minilm")  # takes minutes; the same call again resumes the run
    engine = kdc.load(result.artifact)
    engine.predict([("What does `shutil.copytree` do?", "Recursively copy a directory tree.")])

`docs/how-to/use-from-python.md` has an example of each. Importing this module loads nothing heavy: a function imports
what it needs when it is called, and only `compress`, `frontier`, `judge`, and `verify` with a file of rows, need more
than the serving install.
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
    """Load an artifact; every file is checked against the hashes in its manifest.

    Args:
        artifact: a folder, or an address as `kdc pull` takes it: hf://owner/name, bento:NAME, s3://bucket/path, ...
            An address is fetched into the cache (`KDC_CACHE`) once.
        variant: "fp32", "int8", "fp16" or, of two models, "cascade"; None takes the one that the manifest names for the
            device.
        device: "auto" (CUDA where it starts, else the CPU), "cpu", "cuda" or "tensorrt".
        threads: of a forward pass; None takes all cores that this process may use.
        allow_failed: accept an artifact that failed its contract.
        expect_sha256: the SHA-256 that the manifest must have.

    Returns:
        The engine: `predict` gives probabilities (rows, classes), `logits`, `labels`, `close`.

    Raises:
        InputError: there is no artifact, it is another one than expected, or it failed its contract.
        KdcError: the artifact is damaged, or the device did not take effect.
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
    """From labelled rows to a verified artifact, as `kdc compress` does it. Progress goes to stderr.

    The same call again goes on where it was cut off, and skips what is done. It raises `KdcError` for a run that cannot
    be finished; an artifact that fails its contract is no error but a verdict, in the result.

    Args:
        config: TOML file with settings; what is given here wins over it.
        contract: what the artifact must keep; its limits may also be given one by one (`max_drop=1.0`).
        start_from: stage from which on all is done again.
        until: stage to stop after; the result then has no artifact.
        force: do all stages again.
        **settings: by the names that `kdc config` prints: `task`, `family`, `train`, `out`, `max_drop`, ... A name that
            several sections have is given within its section: `student={"epochs": 2}`.

    Returns:
        The artifact's path, the metrics of every model, and the judgement of the contract.

    Raises:
        InputError: a setting, a file or a row is wrong.
        KdcError: a stage failed; the message says what to do.
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
    """The whole curve of a task, from the teacher to a student without any of its layers, as `kdc compress --frontier`
    makes it. Every point is an artifact, and all are measured side by side.

    The arguments are those of `compress`, without limits. `student={"hours": 2}` bounds the trainings of all students
    together.

    Returns:
        The points with their scores, costs and intervals; `artifact(student)` is the folder of one.

    Raises:
        InputError: a setting, a file or a row is wrong.
        KdcError: what all points have in common could not be made, or no point could.
    """
    resolved = _resolved(config, None, settings)
    from kdc.pipeline.compress import frontier_for_people

    return frontier_for_people(resolved, start_from=start_from, force=force)


def _resolved(config: str | PathLike[str] | None, contract: Contract | None, settings: dict[str, Any]) -> Config:
    """The settings of a run from a file, a contract and keywords, of which the later ones win."""
    from pathlib import Path

    from kdc.pipeline.config import resolve

    layer = resolve.layer_of_keywords(settings)
    if contract is not None:
        terms = contract.model_dump(exclude_none=True)
        layer["contract"] = terms.pop("limits") | terms | layer.get("contract", {})
    file = resolve.read_file(Path(config)) if config is not None else {}
    return resolve.resolve(flags=layer, sets={}, file=file)


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
    device: Device | None = None,
    expect_sha256: str | None = None,
) -> Judgement:
    """Judge an artifact on this machine: its hashes, size and speed, and with rows at hand its quality.

    Args:
        artifact: its folder.
        contract: judged in place of the artifact's own.
        data: file with labelled rows; without one, the quality of the earlier judgement stands.
        teacher: hub id or path, needed for rows that the artifact was not evaluated on.
        text, text_pair, label, separator: of that file, where they are named otherwise than in training.
        device: "cpu", "cuda" or "auto"; None measures where the contract was judged before.
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
        columns={"text": text, "text_pair": text_pair, "label": label, "separator": separator},
        device=device,
        expect_sha256=expect_sha256,
    )
    return judgement


def __getattr__(name: str) -> Any:
    """`kdc.Contract`, `kdc.Engine` and `kdc.judge`, imported at their first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

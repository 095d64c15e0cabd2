"""Exports an artifact, whole or not at all. An incomplete MLflow run has status FAILED."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER, Manifest
from kdc.artifact.stores.hub_layout import write_repository
from kdc.common.errors import InputError
from kdc.tools.export.mlflow_run import log_run
from kdc.tools.export.oci import write_image
from kdc.tools.export.triton import model_name, write_model
from kdc.tools.export.web_page import write_page

FORMS = ("triton", "oci", "mlflow", "web", "hub")
_OF_ONE_GRAPH = ("triton", "web")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # registry tags, Triton models


class Exported(NamedTuple):
    place: str  # folder, MLflow's address
    sha256: str  # of the manifest
    bytes: int  # of all files; for MLflow of the artifact
    next: str


def export_artifact(
    artifact: Path,
    target: str,
    *,
    form: str,
    name: str | None = None,
    variant: str | None = None,
    assets: Path | None = None,
    example: Sequence[str] = (),
    allow_failed: bool = False,
) -> Exported:
    """Check an artifact's hashes, and write it in one of `FORMS`.

    Args:
        target: "triton": the model repository. "oci", "web", "hub": a new folder. "mlflow": address of a server or
            database.
        name: of the model or page (None: the task's), or the image's tag (None: "latest").
        variant: of a Triton model or a web page; None is the CPU's choice.
        assets: folder with the archives of a web page's JavaScript libraries; None fetches them from npm.
        example: texts that the hub offers to try.

    Raises:
        InputError: the form, variant or name is impossible, the place is taken, or the contract failed.
        KdcError: the artifact is damaged, MLflow is missing or refused, or a JavaScript library cannot be read.
    """
    if form not in FORMS:
        raise InputError("no such form", given=form, remedy=f"--to {' or --to '.join(FORMS)}")
    manifest = load_manifest(artifact)
    refuse_failed(manifest.contract, allow=allow_failed)
    if variant is not None and form not in _OF_ONE_GRAPH:
        remedy = f"drop it, or --to {' or --to '.join(_OF_ONE_GRAPH)}"
        raise InputError(f"--to {form} takes no variant", given=f"--variant {variant}", remedy=remedy)
    if assets is not None and form != "web":
        raise InputError("only --to web takes assets", given=f"--assets {assets}", remedy="drop it")
    if example and (form != "hub" or manifest.task.is_pair):
        raise InputError("only --to hub of a task on single texts takes examples", given=example[0], remedy="drop them")
    task_name, title = model_name(manifest.task.name), name or manifest.task.name
    name = name or ("latest" if form == "oci" else task_name)
    if not _NAME.fullmatch(name):
        raise InputError("not a valid name of a model or tag", given=name, remedy="letters, digits, and within it ._-")
    if form == "mlflow":
        address = log_run(artifact, manifest, target, name.replace(".", "-"))  # MLflow allows no dots
        use = f"mlflow.set_tracking_uri({target!r}); mlflow.pyfunc.load_model({address!r})"
        return Exported(address, manifest.sha256, manifest.size_bytes, use)
    if form == "triton":
        variant, folder = _one_graph(manifest, variant), Path(target) / name
        with _whole_folder(folder, beside=Path(target)) as working:
            write_model(artifact, manifest, working, name=name, variant=variant)
        use = f"tritonserver --model-repository {target}"
    elif form == "web":
        variant, folder = _one_graph(manifest, variant), Path(target)
        with _whole_folder(folder, beside=folder) as working:
            write_page(artifact, manifest, working, title=title, variant=variant, assets=assets)
        use = f"python -m http.server --bind 127.0.0.1 --directory {target}, and open http://127.0.0.1:8000"
    elif form == "hub":
        folder = Path(target)
        with _whole_folder(folder, beside=folder) as working:
            write_repository(artifact, manifest, working, examples=example)
        use = f"hf upload OWNER/NAME {target}; kdc pull hf://OWNER/NAME DIR"
    else:
        folder = Path(target)
        with _whole_folder(folder, beside=folder) as working:
            write_image(artifact, manifest, working, tag=name)
        use = f"skopeo copy --all oci:{target}:{name} docker://REGISTRY/{task_name}:{name}"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Exported(str(folder), manifest.sha256, size, use)


def _one_graph(manifest: Manifest, variant: str | None) -> str:
    variant = variant or manifest.providers[CPU_PROVIDER]
    alone = [str(name) for name, value in manifest.variants.items() if value.second is None]
    if variant not in alone:
        remedy = f"--variant with one of {', '.join(alone)}"
        raise InputError("the artifact has no such variant of one graph", given=variant, remedy=remedy)
    return variant


@contextmanager
def _whole_folder(folder: Path, *, beside: Path) -> Iterator[Path]:
    """The folder appears when the block ends: Triton would load a half-written model."""
    if os.path.lexists(folder):
        raise InputError("something is there already", given=folder, remedy="name another place, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=".kdc-export-", dir=beside.absolute().parent))
    working.chmod(0o755)
    try:
        yield working
        os.rename(working, folder)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise

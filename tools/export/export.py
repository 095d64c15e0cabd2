"""Exports an artifact: checks it, and puts the other form in place whole or not at all.

Reads the artifact. Writes one folder, under its name when it is complete; or a run of MLflow, which has FAILED as its
status where it is not.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.errors import InputError
from kdc.tools.export.mlflow_run import log_run
from kdc.tools.export.oci import write_image
from kdc.tools.export.triton import model_name, write_model

Form = Literal["triton", "oci", "mlflow"]
FORMS: tuple[Form, ...] = ("triton", "oci", "mlflow")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # of a tag in a registry; Triton's models can be called so too


class Exported(NamedTuple):
    """What was written."""

    place: str  # the folder, or MLflow's address of the model
    sha256: str  # SHA-256 of the artifact's manifest
    bytes: int  # size of all files together; of the artifact's own, for MLflow
    next: str  # a command that uses it


def export_artifact(
    artifact: Path,
    target: str,
    *,
    form: str,
    name: str | None = None,
    variant: str | None = None,
    allow_failed: bool = False,
) -> Exported:
    """Write an artifact in another form.

    Args:
        artifact: its folder; every file's hash is checked.
        target: "triton": folder of the model repository, in which one named after the model is made; "oci": folder of
            the image layout, which must not be there yet; "mlflow": address of MLflow's tracking server or database.
        form: one of `FORMS`.
        name: of the model, or the tag of the image; None for the task's name, or "latest".
        variant: "fp32", "int8" or "fp16" for a Triton model; None for the one that CPUs load. The others have all.
        allow_failed: export an artifact that failed its contract too.

    Raises:
        InputError: there is no such form or variant, or the variant is two models, which a Triton model cannot be; the
            name or its place is none, or the contract failed.
        KdcError: the artifact is damaged; or MLflow is not installed, or refused.
    """
    if form not in FORMS:
        raise InputError("no such form", given=form, remedy=f"--to {' or --to '.join(FORMS)}")
    manifest = load_manifest(artifact)
    refuse_failed(manifest.contract, allow=allow_failed)
    chosen = {str(key): value for key, value in manifest.variants.items()}
    if variant is not None and form != "triton":
        raise InputError("only a Triton model is of one variant", given=f"--variant {variant}", remedy="drop it")
    variant = variant or manifest.providers[CPU_PROVIDER]
    if variant not in chosen:
        raise InputError("the artifact has no such variant", given=variant, remedy=f"it has: {', '.join(chosen)}")
    if form == "triton" and chosen[variant].second is not None:
        alone = ", ".join(name for name, each in chosen.items() if each.second is None)
        raise InputError(
            "a Triton model is one graph, and this variant is two",
            given=variant,
            remedy=f"--variant with one of {alone}",
        )
    name = name or ("latest" if form == "oci" else model_name(manifest.task.name))
    if not _NAME.fullmatch(name):
        raise InputError("this is no name of a model or a tag", given=name, remedy="letters, digits, and within it ._-")
    if form == "mlflow":
        name = name.replace(".", "-")  # which MLflow does not allow
        place = log_run(artifact, manifest, target, name)
        use = f"mlflow.set_tracking_uri({target!r}); mlflow.pyfunc.load_model({place!r})"
        return Exported(place, manifest.sha256, manifest.size_bytes, use)
    folder = Path(target) / name if form == "triton" else Path(target)
    if os.path.lexists(folder):
        raise InputError("something is there already", given=folder, remedy="name another place, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside a model repository, not in it: Triton would take a half-written model for one.
    working = Path(tempfile.mkdtemp(prefix=".kdc-export-", dir=Path(target).absolute().parent))
    working.chmod(0o755)
    try:
        if form == "triton":
            write_model(artifact, manifest, working, name=name, variant=variant)
            use = f"tritonserver --model-repository {target}"
        else:
            write_image(artifact, manifest, working, tag=name)
            use = f"skopeo copy --all oci:{target}:{name} docker://REGISTRY/{model_name(manifest.task.name)}:{name}"
        os.rename(working, folder)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Exported(str(folder), manifest.sha256, size, use)

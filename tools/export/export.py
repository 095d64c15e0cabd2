"""Exports an artifact: checks it, and puts the other form in place whole or not at all.

Reads the artifact. Writes one folder, under its name when it is complete.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.errors import InputError
from kdc.tools.export.oci import write_image
from kdc.tools.export.triton import model_name, write_model

Form = Literal["triton", "oci"]
FORMS: tuple[Form, ...] = ("triton", "oci")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # of a tag in a registry; Triton's models can be called so too


class Exported(NamedTuple):
    """What was written."""

    folder: str  # where
    sha256: str  # SHA-256 of the artifact's manifest
    bytes: int  # size of all files together
    next: str  # a command that uses it


def export_artifact(
    artifact: Path,
    folder: Path,
    *,
    form: str,
    name: str | None = None,
    variant: str | None = None,
    allow_failed: bool = False,
) -> Exported:
    """Write an artifact in another form.

    Args:
        artifact: its folder; every file's hash is checked.
        folder: "triton": the model repository, in which a folder named after the model is made; "oci": the image
            layout, which must not be there yet.
        form: one of `FORMS`.
        name: of the model, or the tag of the image; None for the task's name, or "latest".
        variant: "fp32", "int8" or "fp16" of a Triton model; None for the one that CPUs load. An image has all.
        allow_failed: export an artifact that failed its contract too.

    Raises:
        InputError: there is no such form or variant, the name or its place is none, or the contract failed.
        KdcError: the artifact is damaged.
    """
    if form not in FORMS:
        raise InputError("no such form", given=form, remedy=f"--to {' or --to '.join(FORMS)}")
    manifest = load_manifest(artifact)
    refuse_failed(manifest.contract, allow=allow_failed)
    chosen = {str(key): value for key, value in manifest.variants.items()}
    variant = variant or manifest.providers[CPU_PROVIDER]
    if variant not in chosen:
        raise InputError("the artifact has no such variant", given=variant, remedy=f"it has: {', '.join(chosen)}")
    name = name or (model_name(manifest.task.name) if form == "triton" else "latest")
    if not _NAME.fullmatch(name):
        raise InputError("this is no name of a model or a tag", given=name, remedy="letters, digits, and within it ._-")
    target = folder / name if form == "triton" else folder
    if os.path.lexists(target):
        raise InputError("something is there already", given=target, remedy="name another place, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    working = target.with_name(f".{target.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        if form == "triton":
            write_model(artifact, manifest, working, name=name, variant=variant)
            use = f"tritonserver --model-repository {folder}"
        else:
            write_image(artifact, manifest, working, tag=name)
            use = f"skopeo copy oci:{folder}:{name} docker://REGISTRY/{model_name(manifest.task.name)}:{name}"
        os.rename(working, target)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return Exported(str(target), manifest.sha256, size, use)

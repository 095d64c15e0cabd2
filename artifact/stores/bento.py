"""BentoML's model store on this machine: an artifact is a model, a push a version of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import MANIFEST_NAME, Manifest
from kdc.artifact.stores.addresses import Tag
from kdc.artifact.stores.sources import reaching
from kdc.common.errors import InputError, KdcError

# BentoML's own files of a model. It unpickles the second one, so a file of that name would be code to run.
_TAKEN = ("model.yaml", "custom_objects.pkl")
_REMEDY = "`bentoml models list` shows what there is; BENTOML_HOME says where"


def folder_of(tag: Tag) -> Path:
    """Where the store keeps a model.

    Raises:
        InputError: there is no such model.
        KdcError: the store cannot be read.
    """
    found = _find(str(tag))
    if found is None:
        raise InputError("BentoML's store has no such model", given=f"bento:{tag}", remedy=_REMEDY)
    return Path(found.path)


def push_to_bento(
    tag: Tag, artifact: Path, manifest: Manifest, content: bytes, *, force: bool
) -> tuple[int | None, str]:
    """Add an artifact to the store: as the version that is named, or as a new one unless one is the same.

    Args:
        tag: of the model.
        artifact: the folder.
        manifest: of it.
        content: the manifest's bytes.
        force: also in the place of another artifact of the same version.

    Returns:
        The bytes that were written (None: it was there), and the address of this version.

    Raises:
        InputError: the version is another artifact, or a file has a name that BentoML's own files have.
        KdcError: the store cannot be written.
    """
    if taken := [name for name in _TAKEN if name in manifest.files]:
        raise InputError("a file of the artifact is named as one of BentoML's", given=taken[0], remedy="rename it")
    same = _same(tag, manifest)
    if same is not None:
        return None, f"bento:{same.tag}"
    bentoml = _bentoml()
    with reaching(f"bento:{tag}", _REMEDY):
        if tag.version is not None and _find(str(tag)) is not None:
            if not force:
                raise InputError(
                    "another model is there", given=f"bento:{tag}", remedy="another version, or --force to replace it"
                )
            bentoml.models.delete(str(tag))
        # Written to a temporary folder first, and to the store at the end of the block.
        with bentoml.models.create(
            str(tag),
            labels={"made-by": "kdc", "task": _label(manifest.task.name)},
            metadata={"kdc_sha256": manifest.sha256},
        ) as model:
            for name in manifest.files:
                shutil.copyfile(artifact / name, Path(model.path) / name)
            (Path(model.path) / MANIFEST_NAME).write_bytes(content)
            load_manifest(Path(model.path), expect_sha256=manifest.sha256)
    return sum(info.size for info in manifest.files.values()) + len(content), f"bento:{model.tag}"


def _same(tag: Tag, manifest: Manifest) -> Any:
    """The version that is this very artifact and whole, among all or the one that is named; else None."""
    with reaching(f"bento:{tag}", _REMEDY):
        found = _find(str(tag))
        if found is None:
            return None
        versions = [found] if tag.version is not None else _bentoml().models.list(tag.name)
    for model in versions:
        if model.info.metadata.get("kdc_sha256") != manifest.sha256:
            continue
        try:
            load_manifest(Path(model.path), expect_sha256=manifest.sha256)
        except KdcError:  # damaged: a new version is made, or the named one replaced by force
            continue
        return model
    return None


def _find(tag: str) -> Any:
    bentoml = _bentoml()
    with reaching(f"bento:{tag}", _REMEDY):
        try:
            return bentoml.models.get(tag)
        except bentoml.exceptions.NotFound:
            return None


def _label(text: str) -> str:
    """As BentoML lets labels be: at most 63 letters, digits, - _ and dots, without those at the ends."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
    return kept[:63].strip("-") or "task"


def _bentoml() -> Any:
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")  # nobody is told unless the person asks for it
    import bentoml
    import bentoml.exceptions

    return bentoml

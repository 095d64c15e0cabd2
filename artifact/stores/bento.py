"""BentoML's local model store: an artifact is a model, each push a version."""

import os
import shutil
from pathlib import Path
from typing import Any

from kdc.artifact.folder import load_manifest
from kdc.artifact.stores.addresses import BENTO, Tag
from kdc.artifact.stores.sources import Outgoing
from kdc.common.errors import InputError
from kdc.common.places import reaching

# BentoML's own files. It unpickles the second, so an artifact's file of that name would run as code.
_RESERVED = ("model.yaml", "custom_objects.pkl")
_REMEDY = "`bentoml models list` lists its models; BENTOML_HOME is its folder"


def folder_of(tag: Tag) -> Path:
    model = _find(tag)
    if model is None:
        raise InputError("BentoML's store has no such model", given=f"{BENTO}{tag}", remedy=_REMEDY)
    return Path(model.path)


def push_to_bento(tag: Tag, artifact: Outgoing, *, force: bool) -> tuple[int | None, str]:
    """Add an artifact as the tag's version. Without a version, add a new one unless one holds the artifact. `force`
    replaces the tag's version, or adds a new one.

    Returns:
        Bytes written (None: it was there), and the address.

    Raises:
        InputError: the version is another artifact, or a file's name is reserved.
    """
    manifest, bentoml = artifact.manifest, _bentoml()
    if reserved := [name for name in _RESERVED if name in manifest.files]:
        raise InputError("a file of the artifact is named as one of BentoML's", given=reserved[0], remedy="rename it")
    with reaching(f"{BENTO}{tag}", _REMEDY):
        if (present := _find(tag)) is not None and not force:
            for model in [present] if tag.version is not None else bentoml.models.list(tag.name):
                if model.info.metadata.get("kdc_sha256") == manifest.sha256:
                    is_new = artifact.renew_signature(Path(model.path))
                    return len(artifact.signature or b"") if is_new else None, f"{BENTO}{model.tag}"
            if tag.version is not None:
                remedy = "another version, or --force to replace it"
                raise InputError("another model is there", given=f"{BENTO}{tag}", remedy=remedy)
        elif present is not None and tag.version is not None:
            bentoml.models.delete(str(tag))
        # A temporary folder, published when the block ends.
        with bentoml.models.create(
            str(tag), labels={"made-by": "kdc"}, metadata={"kdc_sha256": manifest.sha256}
        ) as model:
            for name in manifest.files:
                shutil.copyfile(artifact.folder / name, Path(model.path) / name)
            for name, content in artifact.by_name.items():
                (Path(model.path) / name).write_bytes(content)
            load_manifest(Path(model.path), expect_sha256=manifest.sha256)
    return manifest.size_bytes + artifact.size_bytes, f"{BENTO}{model.tag}"


def _find(tag: Tag) -> Any:
    bentoml = _bentoml()
    with reaching(f"{BENTO}{tag}", _REMEDY):
        try:
            return bentoml.models.get(str(tag))
        except bentoml.exceptions.NotFound:
            return None


def _bentoml() -> Any:
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    import bentoml
    import bentoml.exceptions

    return bentoml

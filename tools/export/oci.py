"""An artifact as an OCI image layout 1.1: one layer with its files under `/models`, for linux on amd64 and arm64.

Kubernetes mounts it as a volume; KServe reads it as `oci://`.
"""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from kdc.common.files import sha256_of

_INDEX, _MANIFEST, _CONFIG, _LAYER = (
    f"application/vnd.oci.image.{kind}"
    for kind in ("index.v1+json", "manifest.v1+json", "config.v1+json", "layer.v1.tar")
)
_ARCHITECTURES = ("amd64", "arm64")


def write_image(artifact: Path, manifest: Manifest, folder: Path, *, tag: str) -> None:
    """The same artifact gives the same bytes, so registries store a layer once."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    signature = [SIGNATURE_NAME] if (artifact / SIGNATURE_NAME).is_file() else []
    layer = _add_layer(artifact, sorted([*manifest.files, MANIFEST_NAME, *signature]), blobs)
    annotations = {
        "org.opencontainers.image.title": manifest.task.name,
        "org.opencontainers.image.created": manifest.created,
        "dev.kdc.manifest.sha256": manifest.sha256,
    }
    images = [_add_image(name, layer, manifest.created, annotations, blobs) for name in _ARCHITECTURES]
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": images, "annotations": annotations}
    named = _add_json(index, _INDEX, blobs) | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (folder / "index.json").write_bytes(_bytes({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [named]}))
    (folder / "oci-layout").write_bytes(_bytes({"imageLayoutVersion": "1.0.0"}))


def _add_image(
    architecture: str, layer: dict[str, Any], created: str, annotations: dict[str, str], blobs: Path
) -> dict[str, Any]:
    config = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {"WorkingDir": "/models"},
        # The uncompressed layer's digest is its diff_id.
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        "history": [{"created": created, "created_by": "kdc export"}],
    }
    image = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _add_json(config, _CONFIG, blobs),
        "layers": [layer],
        "annotations": annotations,
    }
    return _add_json(image, _MANIFEST, blobs) | {"platform": {"architecture": architecture, "os": "linux"}}


def _add_layer(artifact: Path, names: list[str], blobs: Path) -> dict[str, Any]:
    temporary = blobs / ".layer"
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
        top = tarfile.TarInfo("models")
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(top)
        for name in names:
            entry = tarfile.TarInfo(f"models/{name}")
            entry.size, entry.mode = (artifact / name).stat().st_size, 0o644
            with (artifact / name).open("rb") as file:
                archive.addfile(entry, file)
    digest = sha256_of(temporary)
    layer = temporary.rename(blobs / digest)
    return {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": layer.stat().st_size}


def _add_json(document: dict[str, Any], media_type: str, blobs: Path) -> dict[str, Any]:
    content = _bytes(document)
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

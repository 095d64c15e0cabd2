"""An artifact as a folder of static files: a page that runs the model in the visitor's browser.

ONNX Runtime Web and a tokenizer come from npm, in pinned versions. Hashes are checked before anything is unpacked.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from kdc.artifact.manifest import Manifest
from kdc.common.errors import KdcError

_PAGES = Path(__file__).with_name("web")
_PACKED = ".gzip"  # some servers decompress .gz
_MOST_BYTES = 256 * 1024 * 1024  # of an archive; a longer one fails the hash
_SECONDS = 60  # without a byte


class Package(NamedTuple):
    name: str
    version: str
    sha512: str  # in base64, npm's `dist.integrity`
    files: Mapping[str, str]  # package path -> exported

    @property
    def archive(self) -> str:
        """As `npm pack` names it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def url(self) -> str:
        registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
        return f"{registry}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.31.1",
        "5GeH+bWQ+HxM10z7erGlsWqryrwMbSvm/1tkIsKTT48g0fI19VXVVC435t4t7VsPdSQeS7NmuZPXrQ73k82URw==",
        {"dist/ort.wasm.bundle.min.mjs": "ort.js", "dist/ort-wasm-simd-threaded.wasm": f"ort.wasm{_PACKED}"},
    ),
    Package(
        "@huggingface/tokenizers",
        "0.2.0",
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        {"dist/tokenizers.min.mjs": "tokenizers.js", "LICENSE": "tokenizers-license.txt"},
    ),
)


def write_page(
    artifact: Path, manifest: Manifest, folder: Path, *, title: str, variant: str, assets: Path | None
) -> None:
    """Raises KdcError if a package is missing in `assets` (None: npm), or is not the pinned one."""
    for package in PACKAGES:
        for name, content in _unpacked(package, fetch(package, assets)):
            _write(folder / name, content)
    for page in _PAGES.iterdir():
        shutil.copyfile(page, folder / page.name)
    playground = files("kdc.serving.http").joinpath("pages", "playground.html").read_text(encoding="utf-8")
    style = playground.partition("<style>")[2].partition("</style>")[0]
    (folder / "style.css").write_text(style, encoding="utf-8")
    graph = manifest.variants[variant].file  # type: ignore[index]
    _write(folder / f"model.onnx{_PACKED}", (artifact / graph).read_bytes())
    _write(folder / f"tokenizer.json{_PACKED}", (artifact / "tokenizer.json").read_bytes())
    task, tokenizer = manifest.task, manifest.tokenizer
    info = task.model_dump(mode="json", include={"kind", "labels", "center", "spread"}) | {
        "name": title,
        "columns": [name for name in (task.text, task.text_pair) if name is not None],
        "temperature": manifest.temperature,
        "variant": variant,
        "max_length": tokenizer.max_length,
        "truncation_side": tokenizer.truncation_side,
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".txt"),
    }
    (folder / "model.json").write_text(json.dumps(info, ensure_ascii=False), encoding="utf-8")


def _write(path: Path, content: bytes) -> None:
    """The page unpacks, because not all static servers compress."""
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == _PACKED else content)


def fetch(package: Package, assets: Path | None = None) -> bytes:
    place = package.url if assets is None else str(assets / package.archive)
    try:
        if assets is not None:
            content = Path(place).read_bytes()
        else:
            with urllib.request.urlopen(place, timeout=_SECONDS) as reply:
                content = reply.read(_MOST_BYTES)
    except (OSError, ValueError) as error:
        packages = " ".join(f"{each.name}@{each.version}" for each in PACKAGES)
        remedy = f"where npm can be reached: npm pack {packages}; then --assets with that folder"
        raise KdcError("a JavaScript library cannot be read", given=f"{place}: {error}", remedy=remedy) from error
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != package.sha512:
        remedy = f"fetch {package.name} {package.version} again, from npm itself"
        raise KdcError("a JavaScript library is not the pinned one (its SHA-512 differs)", given=place, remedy=remedy)
    return content


def _unpacked(package: Package, archive: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        for path, name in package.files.items():
            file = opened.extractfile(f"package/{path}")
            assert file is not None  # the hash says so
            yield name, file.read()

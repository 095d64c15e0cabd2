"""Every store carries signatures, and `kdc pull` and the cache of `kdc serve` check them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from bag_models import write_artifact
from signing import make_key, put_signature
from transfers import contents, hidden

from kdc.artifact.folder import load_manifest
from kdc.artifact.signature import signed_sha256_of
from kdc.artifact.stores import files
from kdc.artifact.stores.transfer import pull_artifact, push_artifact
from kdc.common.errors import InputError, KdcError
from kdc.serving.http.artifacts import local


@pytest.fixture(params=["path", "s3", "hub", "bento"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    fixtures = {"s3": "bucket", "hub": "stub", "bento": "store"}
    if request.param in fixtures:
        request.getfixturevalue(fixtures[request.param])
    places = {"path": str(tmp_path / "there"), "s3": "s3://models/mood", "hub": "hf://team/mood"}
    return places.get(request.param, "bento:mood:v1")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    return make_key(tmp_path / "keys")


def test_a_store_carries_a_signature_and_a_newer_one(
    artifact: Path, tmp_path: Path, target: str, keys: tuple[str, str]
) -> None:
    new, copy = make_key(tmp_path / "keys", "new"), tmp_path / "copy"
    pushed = push_artifact(artifact, target, sign_key=keys[0])
    assert "signature.json" not in contents(artifact)
    pulled = pull_artifact(target, copy, verify_key=[keys[1]])
    assert (pulled.files, pulled.received_bytes) == (pushed.files, pushed.bytes)
    assert contents(copy).keys() - contents(artifact).keys() == {"signature.json"}
    assert not push_artifact(artifact, target, sign_key=keys[0]).changed
    assert not push_artifact(artifact, target).changed  # keeps the signature that is there
    assert not pull_artifact(target, copy, verify_key=[keys[1]]).changed
    assert push_artifact(artifact, target, sign_key=new[0]).changed
    with pytest.raises(InputError, match="no given key"):
        pull_artifact(target, tmp_path / "another", verify_key=[keys[1]])
    assert not (tmp_path / "another").exists()
    pull_artifact(target, copy, verify_key=[new[1]])
    assert signed_sha256_of(copy, [new[1]]) == pushed.sha256
    assert hidden(tmp_path) == []


def test_a_signature_goes_with_its_artifact(
    artifact: Path, other: Path, tmp_path: Path, target: str, keys: tuple[str, str]
) -> None:
    push_artifact(artifact, target, sign_key=keys[0])
    pull_artifact(target, tmp_path / "copy")
    push_artifact(other, target, force=True)
    with pytest.raises(InputError, match="has no signature"):
        pull_artifact(target, tmp_path / "copy", verify_key=[keys[1]], force=True)
    assert load_manifest(tmp_path / "copy").sha256 == load_manifest(artifact).sha256
    pull_artifact(target, tmp_path / "copy", force=True)
    assert contents(tmp_path / "copy") == contents(other)


def test_a_pulled_artifact_can_be_pushed_on_without_the_key(
    artifact: Path, tmp_path: Path, target: str, keys: tuple[str, str]
) -> None:
    push_artifact(artifact, str(tmp_path / "signed"), sign_key=keys[0])
    push_artifact(tmp_path / "signed", target)
    pull_artifact(target, tmp_path / "copy", verify_key=[keys[1]])
    assert contents(tmp_path / "copy") == contents(tmp_path / "signed")


def test_signing_in_place_keeps_the_artifact_served(
    tmp_path: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a manifest that is removed and written again, while a service watches the folder."""
    folder = write_artifact(tmp_path / "artifact")
    removed: list[str] = []
    monkeypatch.setattr(files.FileTarget, "_remove", lambda _, names: removed.extend(names))
    push_artifact(folder, str(folder), sign_key=keys[0])
    assert removed == []
    assert signed_sha256_of(folder, [keys[1]]) == load_manifest(folder).sha256


def test_an_artifact_forged_in_the_store_is_refused_before_its_files(
    artifact: Path, other: Path, tmp_path: Path, bucket: Any, traffic: Any, keys: tuple[str, str]
) -> None:
    push_artifact(artifact, "s3://models/mood", sign_key=keys[0])
    for name, content in contents(other).items():
        bucket.pipe_file(f"models/mood/{name}", content)
    traffic.asked.clear()
    with pytest.raises(InputError, match="not the artifact that was expected"):
        pull_artifact("s3://models/mood", tmp_path / "copy", verify_key=[keys[1]])
    assert {name for name, _ in traffic.of("GetObject")} == {"manifest.json", "signature.json"}
    assert not (tmp_path / "copy").exists()


def test_a_store_that_does_not_say_what_is_missing_can_be_pulled_from_without_keys(
    artifact: Path, tmp_path: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = files.FileSource.read

    def forbidden(self: files.FileSource, name: str, limit: int) -> bytes:
        if name == "signature.json":
            raise KdcError("the store failed", given="403", remedy="none")
        return read(self, name, limit)

    monkeypatch.setattr(files.FileSource, "read", forbidden)
    with pytest.raises(KdcError, match="the store failed"):
        pull_artifact(str(artifact), tmp_path / "copy", verify_key=[keys[1]])
    assert pull_artifact(str(artifact), tmp_path / "copy").changed


def test_the_cache_gets_a_new_signature_of_an_artifact_that_it_has(
    artifact: Path, tmp_path: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDC_CACHE", str(tmp_path / "cache"))
    source = shutil.copytree(artifact, tmp_path / "source")
    cached = Path(local(source.as_uri()).partition("=")[2])
    with pytest.raises(InputError, match="has no signature"):
        local(source.as_uri(), verify_key=[keys[1]])
    put_signature(source, keys[0])
    local(source.as_uri(), verify_key=[keys[1]])
    assert contents(cached) == contents(source)
    (source / "signature.json").unlink()
    local(source.as_uri())
    assert signed_sha256_of(cached, [keys[1]]) == cached.name

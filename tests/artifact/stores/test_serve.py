"""`kdc serve` with addresses: fetched once and verified, the next time from the cache."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from live import served
from tiny_runs import ROOT
from transfers import BIG, BIG_BYTES, Traffic, contents

from kdc.artifact.folder import load_manifest
from kdc.artifact.stores.transfer import push_artifact
from kdc.common.errors import InputError, KdcError
from kdc.serving.http.artifacts import expected_sha256, local, places_by_name

ADDRESS = "s3://models/team/mood"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty, and this test's own."""
    monkeypatch.setenv("KDC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"


def test_an_address_is_fetched_once_and_then_only_its_manifest(
    artifact: Path, bucket: Any, traffic: Traffic, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    push_artifact(artifact, ADDRESS)
    folder = cache / load_manifest(artifact).sha256
    assert local(f"mood={ADDRESS}") == f"mood={folder}"
    assert contents(folder) == contents(artifact)
    traffic.asked.clear()
    assert local(f"a=/some/path,{ADDRESS}") == f"a=/some/path,mood={folder}"
    assert {name for name, _ in traffic.of("GetObject")} == {"manifest.json"}
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith(f"fetched mood: {ADDRESS}, SHA-256 {folder.name}, 2,0")
    assert second.endswith("in the cache already")


def test_a_damaged_copy_in_the_cache_is_fetched_again(artifact: Path, bucket: Any, cache: Path) -> None:
    push_artifact(artifact, ADDRESS)
    local(ADDRESS)
    damaged = cache / load_manifest(artifact).sha256 / BIG
    damaged.write_bytes(b"x" * BIG_BYTES)
    local(ADDRESS)
    assert contents(damaged.parent) == contents(artifact)


def test_a_newer_artifact_at_the_address_is_another_copy(artifact: Path, other: Path, bucket: Any, cache: Path) -> None:
    for each in (artifact, other):
        push_artifact(each, ADDRESS, force=True)
        assert contents(Path(local(ADDRESS).partition("=")[2])) == contents(each)
    assert len(list(cache.iterdir())) == 2


def test_a_missing_or_damaged_artifact_is_an_error_and_is_not_cached(artifact: Path, bucket: Any, cache: Path) -> None:
    with pytest.raises(InputError, match="no artifact here"):
        local("s3://models/nothing")
    push_artifact(artifact, ADDRESS)
    bucket.pipe_file(f"models/team/mood/{BIG}", b"x" * BIG_BYTES)
    with pytest.raises(KdcError, match="changed on the way"):
        local(ADDRESS)
    assert not any(path.name[0] != "." for path in cache.iterdir())


def test_an_artifact_that_failed_its_contract_is_not_fetched(artifact: Path, cache: Path, monkeypatch: Any) -> None:
    def refuses(_: Any, *, allow: bool) -> None:
        if not allow:
            raise InputError("the artifact failed its contract")

    monkeypatch.setattr("kdc.artifact.stores.transfer.refuse_failed", refuses)
    with pytest.raises(InputError, match="failed its contract"):
        local(artifact.as_uri())
    assert not cache.exists()
    assert local(artifact.as_uri(), allow_failed=True)


def test_an_artifact_is_named_by_the_last_part_of_its_address() -> None:
    text = "runs/qnli/artifact, s3://b/team/mood, s3://b/team/x/artifact, hf://o/n.b@v1, bento:tag:3, n=hf://o/r, b=rel"
    result = places_by_name(text)
    assert list(result) == ["qnli", "mood", "x", "n.b", "tag", "n", "b"]
    assert result["n.b"] == "hf://o/n.b@v1"
    assert local("b=rel") == f"b={Path.cwd() / 'rel'}"
    assert list(places_by_name("s3://b/k=1/mood")) == ["mood"]
    for wrong in ("hf://only-a-name", "bento:a:b:c"):
        with pytest.raises(InputError, match="this is no"):
            places_by_name(wrong)


def test_a_path_imports_nothing_of_stores() -> None:
    code = (
        "import sys\nfrom kdc.serving.http.artifacts import local\nlocal('mood=/some/path')\n"
        "print([m for m in ('kdc.artifact.stores.transfer', 'huggingface_hub', "
        "'filelock', 's3fs') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_kdc_serve_answers_from_an_object_store(artifact: Path, bucket: Any, tmp_path: Path, cache: Path) -> None:
    push_artifact(artifact, ADDRESS)
    with served(tmp_path, "--workers", "2", f"mood={ADDRESS}") as process:
        answer = httpx2.post(f"{process.url}/predict", json={"inputs": "w1 w2"}, timeout=10).json()
        assert {entry["label"] for entry in answer} == {"bad", "so so", "good"}
        printed = process.printed()
    assert printed.count("fetched mood") == 1
    assert str(cache / load_manifest(artifact).sha256) in printed
    assert "S3CRET" not in printed


def test_bentoml_serve_accepts_an_address_in_the_environment(
    artifact: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What BentoML calls before it starts workers, which inherit the environment."""
    code = (
        "import os\nfrom kdc.serving import service\nservice.Classifier.inner.before_workers()\n"
        "print(os.environ['KDC_ARTIFACT'])"
    )
    monkeypatch.setenv("KDC_ARTIFACT", f"mood={artifact.as_uri()}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == f"mood={cache / load_manifest(artifact).sha256}"


def test_only_the_artifact_that_is_expected_is_fetched(artifact: Path, other: Path, bucket: Any, cache: Path) -> None:
    push_artifact(artifact, ADDRESS)
    expected = load_manifest(artifact).sha256
    local(f"mood={ADDRESS}", expect_sha256=expected.upper())
    push_artifact(other, ADDRESS, force=True)
    for pins in (expected, f"mood={expected}"):
        with pytest.raises(InputError, match="not the artifact that was expected"):
            local(f"mood={ADDRESS}", expect_sha256=pins)
    assert [path.name for path in cache.iterdir()] == [expected]


@pytest.mark.parametrize("pins", ["abc", "other=" + "0" * 64, "a=" + "0" * 63, "0" * 64, "", ",", "a=" + "0" * 64])
def test_pins_that_leave_an_artifact_free_are_refused(pins: str) -> None:
    with pytest.raises(InputError, match="SHA-256"):
        expected_sha256(pins, ("a", "b"))

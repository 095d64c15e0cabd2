"""A service with keys loads only what one of them signed: at its start, on reloads, and whatever is moved meanwhile."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from bag_models import write_artifact
from live import ROOT, Process, running, served
from reloads import eventually, expected_scores, link, raw_scores
from signing import make_key, put_signature

from kdc.artifact.folder import load_manifest
from kdc.artifact.signature import signed_sha256_of
from kdc.common.errors import InputError
from kdc.serving.http import registry
from kdc.serving.http.registry import Registry, verify
from kdc.serving.http.settings import ServeSettings, resolve

Keys = tuple[str, str]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_key(tmp_path / "keys")


def refused(url: str, name: str) -> bool:
    return f'kdc_artifact_refused{{model="{name}"}} 1.0' in httpx2.get(f"{url}/metrics", timeout=10).text


def stolen(artifact: Path, other: Path, keys: Keys) -> None:
    """The signature of another artifact."""
    put_signature(other, keys[0])
    shutil.copy(other / "signature.json", artifact)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda *_: None, "has no signature"),
        (lambda artifact, other, _: put_signature(artifact, make_key(other.parent / "strange")[0]), "no given key"),
        (stolen, "not the artifact that was expected"),
    ],
)
def test_what_no_key_signed_is_never_loaded(
    tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture, spoil: Callable[..., Any], message: str
) -> None:
    old, bad = write_artifact(tmp_path / "old"), write_artifact(tmp_path / "bad", scale=2.0)
    put_signature(old, keys[0])
    spoil(bad, write_artifact(tmp_path / "other", scale=3.0), keys)
    for loads in (lambda chosen: verify(chosen), lambda chosen: Registry(chosen).load()):
        with pytest.raises(InputError, match=message):
            loads(ServeSettings(artifact=str(bad), device="cpu", verify_key=[keys[1]]))
    place = link(old, tmp_path / "place")
    with caplog.at_level(logging.ERROR), running(place, reload_s=0.05, verify_key=[keys[1]]) as url:
        link(bad, place)
        eventually(lambda: refused(url, "place"))
        assert message in caplog.text
        assert raw_scores(url) == expected_scores(1.0)
        put_signature(bad, keys[0])  # it may come later
        eventually(lambda: raw_scores(url) == expected_scores(2.0))


def test_a_link_that_moves_between_signature_and_load_gains_nothing(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a signature that is read from one artifact, and a manifest from another."""
    good, bad = write_artifact(tmp_path / "good"), write_artifact(tmp_path / "bad", scale=2.0)
    put_signature(good, keys[0])
    place, check = link(good, tmp_path / "place"), signed_sha256_of

    def moving(*given: Any) -> str | None:
        signed = check(*given)
        link(bad, place)
        return signed

    monkeypatch.setattr(registry, "signed_sha256_of", moving)
    chosen = Registry(ServeSettings(artifact=str(place), device="cpu", threads=1, verify_key=[keys[1]]))
    with chosen._open("place") as engine:
        assert engine.manifest is not None
        assert engine.manifest.sha256 == load_manifest(good).sha256


def test_every_artifact_of_a_service_needs_a_signature(tmp_path: Path, keys: Keys) -> None:
    one, two = write_artifact(tmp_path / "one"), write_artifact(tmp_path / "two")
    put_signature(one, keys[0])
    settings = ServeSettings(artifact=f"a={one},b={two}", device="cpu", verify_key=[keys[1]])
    with pytest.raises(InputError, match=r"has no signature(?s:.*)two"):
        verify(settings)
    put_signature(two, keys[0])
    verify(settings)


def test_keys_change_without_a_restart(tmp_path: Path, keys: Keys) -> None:
    """Each load reads the files anew: a mounted secret may change."""
    old, new = write_artifact(tmp_path / "old"), write_artifact(tmp_path / "new", scale=2.0)
    put_signature(old, keys[0])
    successor = make_key(tmp_path / "keys", "new")
    put_signature(new, successor[0])
    place = link(old, tmp_path / "place")
    with running(place, reload_s=0.05, verify_key=[keys[1]]) as url:
        shutil.copy(successor[1], keys[1])
        link(new, place)
        eventually(lambda: raw_scores(url) == expected_scores(2.0))


def test_settings_name_keys_by_flag_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = [str(tmp_path / "a.pub"), "env:KEY", "/b.pub"]
    by_flag = resolve({"verify_key": ["a.pub", "env:KEY", "/b.pub"]}, {})
    assert by_flag.verify_key == resolve({}, {"KDC_VERIFY_KEY": "a.pub, env:KEY,/b.pub"}).verify_key == expected
    monkeypatch.chdir("/")  # as workers do
    assert resolve({}, by_flag.environment()).verify_key == expected
    assert resolve({}, {}).verify_key is None


@pytest.mark.parametrize("given", [[""], [","], "  ", ",", "no-such-file.pub"])
def test_keys_that_are_none_are_refused(tmp_path: Path, keys: Keys, given: Any) -> None:
    """Would catch an empty list that is taken for no wish to check."""
    put_signature(write_artifact(tmp_path / "artifact"), keys[0])
    chosen = resolve({"artifact": str(tmp_path / "artifact"), "verify_key": given}, {})
    with pytest.raises(InputError, match="key cannot be read"):
        verify(chosen)


def test_bentoml_serve_checks_too(tmp_path: Path, keys: Keys) -> None:
    """What BentoML calls before it starts workers, which inherit the environment."""
    artifact = write_artifact(tmp_path / "artifact")
    code = (
        "import os\nfrom kdc.serving import service\nservice.Classifier.inner.before_workers()\n"
        "print(os.environ['KDC_VERIFY_KEY'])"
    )
    given = os.environ | {"KDC_ARTIFACT": str(artifact), "KDC_VERIFY_KEY": "keys/key.pub", "PYTHONPATH": str(ROOT)}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=given, cwd=tmp_path)

    assert "has no signature" in run().stderr
    put_signature(artifact, keys[0])
    assert run().stdout.splitlines()[-1] == keys[1]


def test_kdc_serve_starts_only_with_a_signature(tmp_path: Path, keys: Keys) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    process = Process(tmp_path, str(artifact), KDC_VERIFY_KEY=keys[1])
    assert process.popen.wait(60) == 2
    assert "the artifact has no signature" in process.printed()
    put_signature(artifact, keys[0])
    other = Path(make_key(tmp_path / "keys", "other")[1]).read_text()
    flags = ("--verify-key", "env:OTHER", "--verify-key", "keys/key.pub")
    with served(tmp_path, str(artifact), *flags, OTHER=other) as service:  # its workers run in another folder
        assert raw_scores(service.url) == expected_scores(1.0)

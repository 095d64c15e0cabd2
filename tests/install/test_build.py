"""What `python -m build` makes: equal bytes each time, and a source distribution that installs."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import bag_models
import pytest
from environments import Environment, Maker
from tracked import copy_tracked

pytestmark = pytest.mark.install

EPOCH = "1767225600"  # of January 2026


def build(checkout: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, as a release is built."""
    pytest.importorskip("build")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation"],
        cwd=checkout,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = (checkout / "dist").glob("*.whl"), (checkout / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(copy_tracked(tmp_path_factory.mktemp("built") / "repository"))


def test_a_wheel_of_other_folders_and_times_has_the_same_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    other = copy_tracked(tmp_path / "elsewhere")
    for path in other.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert build(other)[0].read_bytes() == built[0].read_bytes()


def test_a_wheel_by_the_sdist_holds_what_one_by_the_checkout_does(built: tuple[Path, Path], wheel: Path) -> None:
    with zipfile.ZipFile(built[0]) as released, zipfile.ZipFile(wheel) as direct:
        assert sorted(released.namelist()) == sorted(direct.namelist())
        for name in (name for name in direct.namelist() if not name.endswith("RECORD")):
            assert released.read(name) == direct.read(name), name


def test_the_sdist_holds_no_tests(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if name.count("/") > 1}
    assert folders == {"artifact", "common", "kdc.egg-info", "pipeline", "serving", "tools"}


def test_the_sdist_installs_and_answers(built: tuple[Path, Path], maker: Maker, artifact: Path, tmp_path: Path) -> None:
    environment: Environment = maker.make("sdist", built[1])
    answer = json.loads(environment.run("kdc", "try", artifact, "w1 w2", "--json", cwd=tmp_path))
    best = bag_models.SINGLE.labels[int(bag_models.expected_logits("w1 w2").argmax())]
    assert answer["scores"][0]["label"] == best

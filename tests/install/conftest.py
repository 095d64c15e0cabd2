"""Environments that are made once for all tests of installing: from the wheel, editable, and without kdc."""

import subprocess
import sys
from pathlib import Path

import bag_models
import pytest
from environments import Environment, Maker
from tracked import copy_tracked


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks: to build and install leaves folders behind, which the repository shall not get."""
    return copy_tracked(tmp_path_factory.mktemp("checkout") / "repository")


@pytest.fixture(scope="session")
def wheel(checkout: Path) -> Path:
    """The wheel, as `pip wheel .` makes it."""
    command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    done = subprocess.run([sys.executable, "-m", *command], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (checkout / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("environments"))


@pytest.fixture(scope="session")
def without_kdc(maker: Maker) -> Environment:
    """The libraries alone."""
    return maker.make("without")


@pytest.fixture(scope="session")
def with_wheel(maker: Maker, wheel: Path) -> Environment:
    """What `pip install .` gives."""
    return maker.make("wheel", wheel)


@pytest.fixture(scope="session")
def editable(maker: Maker, checkout: Path) -> Environment:
    """What `pip install --editable .` gives."""
    return maker.make("editable", "--editable", checkout)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose answers numpy can give too. Its CPU's variant is int8, 1.01 times the other."""
    return bag_models.write_artifact(tmp_path_factory.mktemp("artifact"))

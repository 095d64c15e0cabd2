"""The wheel: one name, the tracked files of the installed rooms, and all that an editable installation can import."""

import json
import zipfile
from pathlib import Path

import pytest
from environments import Environment
from tracked import tracked

pytestmark = pytest.mark.install

ROOMS = ("artifact", "common", "pipeline", "serving", "tools")
ROOT_FILES = ("__init__.py", "__main__.py", "cli.py", "py.typed")
NOT_INSTALLED = ("kdc.tests", "kdc.benchmarks", "kdc.examples", "kdc.deploy", "kdc.docs")
IMPORT_ALL = """
import importlib, json, pkgutil
import kdc

outcomes = {}
for module in pkgutil.walk_packages(kdc.__path__, "kdc."):
    try:
        importlib.import_module(module.name)
        outcomes[module.name] = "imported"
    except ModuleNotFoundError as error:
        outcomes[module.name] = f"needs {error.name}"
print(json.dumps(outcomes))
"""


def test_the_wheel_brings_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"kdc"}


def test_the_wheel_holds_what_git_tracks_of_the_installed_rooms(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("kdc/")}
    files = [path.as_posix() for path in tracked() if path.parts[0] in ROOMS] + list(ROOT_FILES)
    assert packed == {f"kdc/{name}" for name in files}


def test_the_wheel_imports_all_that_a_checkout_does(
    with_wheel: Environment, editable: Environment, tmp_path: Path
) -> None:
    of_wheel = json.loads(with_wheel.run("python", "-c", IMPORT_ALL, cwd=tmp_path))
    of_checkout = json.loads(editable.run("python", "-c", IMPORT_ALL, cwd=tmp_path))
    assert of_wheel == {name: outcome for name, outcome in of_checkout.items() if not name.startswith(NOT_INSTALLED)}
    assert not {outcome for outcome in of_wheel.values() if "kdc" in outcome}

"""Which file imports which: each contract of import-linter can fail, and what no contract says holds too."""

import graphlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
from grimp import ImportGraph
from live import ROOT
from tracked import copy_tracked

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
# What breaks each contract: lines that a copy of the package gets at the end of a file, which may be new.
BREAKS = {
    "rooms": {"common/injected.py": "def lazy():\n    import kdc.artifact\n"},
    "pipeline": {"pipeline/config/injected.py": "import kdc.pipeline.rundir\n"},
    "serving-folders": {"serving/bulk/injected.py": "def lazy():\n    import kdc.serving.http\n"},
    "stages": {"pipeline/stages/injected.py": "def lazy():\n    import kdc.pipeline.stages.data\n"},
    "engine": {"serving/engine/injected.py": "import starlette.requests\n"},
    "serving": {"artifact/injected.py": "def lazy():\n    import torch\n"},
    "bento": {
        "serving/service.py": "import kdc.serving.http.injected\n",
        "serving/http/injected.py": "import kdc.serving.bulk.predict\n",
    },
    "tools": {"pipeline/injected.py": "def lazy():\n    import kdc.tools\n"},
    "root": {"tools/export/injected.py": "def lazy():\n    import kdc\n"},
    "circles": {
        "serving/http/injected.py": "import kdc.serving.http.injected_too\n",
        "serving/http/injected_too.py": "def lazy():\n    import kdc.serving.http.injected\n",
    },
}


@pytest.fixture(scope="module")
def graph() -> ImportGraph:
    return grimp.build_graph("kdc", cache_dir=None)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the repository as a folder `kdc`, to be changed."""
    return copy_tracked(tmp_path / "kdc")


def lint(package: Path, contract: str) -> subprocess.CompletedProcess[str]:
    """What import-linter says of a package by one contract of our pyproject.toml."""
    program = str(Path(sys.executable).with_name("lint-imports"))
    return subprocess.run(
        [program, "--no-cache", "--contract", contract, str(ROOT / "pyproject.toml")],
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("contract", [each["id"] for each in CONTRACTS])
def test_each_contract_can_fail(contract: str, package: Path) -> None:
    for name, lines in BREAKS[contract].items():
        with (package / name).open("a", encoding="utf-8") as file:
            file.write(lines)
    done = lint(package, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "injected" in done.stdout


@pytest.mark.parametrize(("contract", "folder"), [("rooms", ""), ("pipeline", "pipeline/")])
def test_a_new_folder_has_to_be_given_its_place(contract: str, folder: str, package: Path) -> None:
    (package / folder / "attic").mkdir()
    (package / folder / "attic" / "__init__.py").touch()
    done = lint(package, contract)
    assert done.returncode == 1
    assert "attic" in done.stdout


def test_no_circle_of_files_through_a_package_file(graph: ImportGraph) -> None:
    """The contract on circles compares siblings; a package's `__init__.py` and a file below it are none."""
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()


def circles_of_folders(graph: ImportGraph) -> set[tuple[str, str]]:
    """Each folder, and one in it, where files of the first import the second and the second imports such files."""
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    folders, circles = {module for module in imports if graph.find_children(module)}, set()
    for inner in folders - {"kdc"}:
        outer = inner.rpartition(".")[0]
        files = {outer} | (graph.find_children(outer) - folders)
        within = {inner} | graph.find_descendants(inner)
        is_imported = any(imports[file] & within for file in files)
        if is_imported and any(imports[module] & files for module in within):
            circles.add((outer, inner))
    return circles


def test_no_circle_of_a_folder_and_one_in_it(graph: ImportGraph) -> None:
    """The contract on circles compares a folder's files with the folder beside them one by one, and so sees none."""
    assert circles_of_folders(graph) == set()


@pytest.mark.parametrize("importer", ["kdc.artifact.contract.rates", "kdc.artifact.contract"])
@pytest.mark.parametrize("imported", ["kdc.artifact.manifest", "kdc.artifact"])
def test_a_circle_of_a_folder_and_one_in_it_is_found(graph: ImportGraph, importer: str, imported: str) -> None:
    assert graph.find_modules_that_directly_import("kdc.artifact.contract.judgement") >= {"kdc.artifact.manifest"}
    graph.add_import(importer=importer, imported=imported)
    try:
        assert circles_of_folders(graph) == {("kdc.artifact", "kdc.artifact.contract")}
    finally:
        graph.remove_import(importer=importer, imported=imported)

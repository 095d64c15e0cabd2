"""pyproject.toml: its list of packages equals the tree, and its dependencies are what the documentation promises."""

import re
import tomllib
from pathlib import Path

import pytest

from kdc import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9-]", requirement, maxsplit=1)[0] for requirement in requirements}


SETUPTOOLS = PROJECT["tool"]["setuptools"]
NOT_INSTALLED = {"tests", "benchmarks", "examples", "deploy", "docs", "build", "dist", "runs"}


def _rooms() -> set[str]:
    """Folders of the repository that hold our modules, as dotted names below `kdc`."""
    files = [path.relative_to(ROOT) for path in ROOT.glob("*/**/*.py")]
    rooms = {file.parent.parts for file in files if not file.parts[0].startswith(".")}
    return {".".join(("kdc", *parts)) for parts in rooms if parts[0] not in NOT_INSTALLED} | {"kdc"}


def test_every_folder_is_packaged() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(_rooms())


def test_an_image_is_given_every_room() -> None:
    """A room that .dockerignore leaves out would be missing from the image alone, and no fast test builds one."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    folders = {line.removeprefix("!") for line in lines if line.startswith("!") and "." not in line} - {"LICENSE"}
    assert folders - {"deploy/lock"} == {name.split(".")[1] for name in SETUPTOOLS["packages"] if name != "kdc"}


@pytest.mark.parametrize(("lock", "runtime"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu")])
def test_the_image_is_given_a_version_with_hashes_of_all_that_serving_needs(lock: str, runtime: str) -> None:
    # The bug to catch: a new dependency, or a newer least version, without `make lock`: the image would not build.
    markers = pytest.importorskip("packaging.requirements")
    text = (ROOT / "deploy" / "lock" / f"{lock}.txt").read_text(encoding="utf-8")
    blocks = [block for block in re.split(r"\n(?=\S)", text) if not block.startswith("#")]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    here = {"platform_system": "Linux", "sys_platform": "linux", "platform_machine": "x86_64"}
    locked = [markers.Requirement(block.partition(" \\")[0]) for block in blocks]
    for wanted in map(markers.Requirement, PROJECT["project"]["dependencies"]):
        if wanted.marker is not None and not wanted.marker.evaluate(here):
            continue
        name = runtime if wanted.name == "onnxruntime-gpu" else wanted.name
        pins = [pin for pin in locked if pin.name == name and (pin.marker is None or pin.marker.evaluate(here))]
        (version,) = {specifier.version for pin in pins for specifier in pin.specifier}
        assert wanted.specifier.contains(version), f"{name}: make lock"
    assert "://" not in text  # no address of a registry


def test_the_service_tells_the_version_that_is_packaged() -> None:
    assert PROJECT["project"]["version"] == __version__


def test_the_base_install_has_no_training_library() -> None:
    assert not _names(PROJECT["project"]["dependencies"]) & {"torch", "transformers", "datasets", "peft", "optimum"}


def test_no_extra_but_optimum_holds_transformers_at_an_old_version() -> None:
    wanted = {name: [each for each in extra if each.startswith("transformers")] for name, extra in EXTRAS.items()}
    assert {name: each for name, each in wanted.items() if each} == {
        "compress": ["transformers>=4.57,<6"],
        "optimum": ["transformers>=4.57,<4.58"],
    }


@pytest.mark.parametrize("system", ["Linux", "Windows", "Darwin"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "AMD64", "arm64"])
def test_exactly_one_onnx_runtime_on_every_platform(system: str, machine: str) -> None:
    markers = pytest.importorskip("packaging.requirements")
    chosen = [
        requirement.name
        for requirement in map(markers.Requirement, PROJECT["project"]["dependencies"])
        if requirement.name.startswith("onnxruntime")
        and requirement.marker.evaluate({"platform_system": system, "platform_machine": machine})
    ]
    has_gpu_wheel = system == "Windows" or (system, machine) == ("Linux", "x86_64")
    assert chosen == ["onnxruntime-gpu" if has_gpu_wheel else "onnxruntime"]


def test_no_index_and_no_local_version_is_named() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "://" not in text
    assert "+cpu" not in text


@pytest.mark.parametrize("folder", ["serving/http", "pipeline/packaging", "pipeline/report"])
def test_the_pages_are_packaged(folder: str) -> None:
    patterns = SETUPTOOLS["package-data"][f"kdc.{folder.replace('/', '.')}"]
    packaged = {path for pattern in patterns for path in (ROOT / folder).glob(pattern)}
    pages = {path for ending in ("html", "css", "md", "mplstyle") for path in (ROOT / folder).rglob(f"*.{ending}")}
    assert pages
    assert pages <= packaged


def test_the_documentation_says_what_each_dependency_is_for_and_who_maintains_it() -> None:
    page = (ROOT / "docs" / "reference" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+)` \| (.*?) ?\| .+ \| 20\d\d-\d\d \| .+ \| .+ \|$", page, re.MULTILINE)
    told = {(name, extra) for name, extras in rows for extra in extras.split(", ")}
    base = _names(PROJECT["project"]["dependencies"])
    of_users = {extra: _names(EXTRAS[extra]) - base for extra in EXTRAS.keys() - {"test", "docs", "browser"}}
    assert told == {(name, "") for name in base} | {(name, key) for key, names in of_users.items() for name in names}
    assert len(rows) == len(dict(rows))


def test_the_map_of_the_code_names_files_that_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Map of the code")[2].partition("\n## ")[0]
    files = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", section)
    assert len(files) >= 15
    assert [file for file in files if not (ROOT / file).is_file()] == []

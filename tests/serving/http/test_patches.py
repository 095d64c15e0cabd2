"""What kdc replaces in other libraries: it takes effect, is still needed, is in one file, and its versions are bounded.

`make test-patches` runs these with the lowest and with the highest versions that pyproject.toml allows.
"""

import ast
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import prometheus_client.mmap_dict
import prometheus_client.values
import pytest
import uvicorn.config
from live import ROOT
from packaging.requirements import Requirement
from prometheus_client import CollectorRegistry, Counter
from tracked import tracked

from kdc.serving.http import patches
from kdc.serving.http.protocol import BoundedProtocol

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIRED = {wanted.name: wanted.specifier for wanted in map(Requirement, PROJECT["project"]["dependencies"])}
PATCHES = [value for name, value in vars(patches).items() if inspect.isfunction(value) and not name.startswith("_")]


def protocol_of(server: uvicorn.Config) -> type:
    """The class of a server's connections."""
    server.load()
    assert isinstance(server.http_protocol_class, type)
    return server.http_protocol_class


def test_a_server_that_names_no_protocol_gets_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["httptools"])
    assert protocol_of(uvicorn.Config("live:running")) is not BoundedProtocol
    patches.speak_http_by("kdc.serving.http.protocol:BoundedProtocol")
    assert protocol_of(uvicorn.Config("live:running")) is BoundedProtocol


def test_bentoml_would_still_name_no_protocol() -> None:
    from _bentoml_impl.worker import service

    calls = [node for node in ast.walk(ast.parse(inspect.getsource(service))) if isinstance(node, ast.Call)]
    (made,) = (call for call in calls if ast.unparse(call.func) == "uvicorn.Config")
    assert "http" not in {each.arg for each in made.keywords}, "take speak_http_by out of serving/http/patches.py"


def test_the_files_of_metrics_have_all_their_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_client.mmap_dict, "open", open, raising=False)
    for name in ("before", "after"):
        prometheus_client.mmap_dict.MmapedDict(str(tmp_path / name))
        patches.allocate_metrics()
    before, after = ((tmp_path / name).stat() for name in ("before", "after"))
    assert before.st_blocks * 512 < before.st_size, "take allocate_metrics out of serving/http/patches.py"
    assert after.st_blocks * 512 >= after.st_size > 0


def test_metrics_that_are_kept_in_memory_have_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.MultiProcessValue())
    for name in ("before", "after"):
        Counter(name, "A counter.", registry=CollectorRegistry()).inc()
        (file,) = tmp_path.iterdir()
        patches.keep_metrics_in_memory()
    assert b"before" in file.read_bytes()
    assert b"after" not in file.read_bytes()


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_a_patch_names_the_required_versions_and_where_upstream_stands(patch: object) -> None:
    lines = (inspect.getdoc(patch) or "").splitlines()
    (versions,) = (Requirement(line.removeprefix("Versions: ")) for line in lines if line.startswith("Versions: "))
    assert versions.specifier == REQUIRED[versions.name]
    assert sum(line.startswith("Upstream: https://") for line in lines) == 1


# The worker of BentoML is started by its internal command; the protocol is a subclass of uvicorn's over httptools.
@pytest.mark.parametrize("name", ["bentoml", "httptools", "prometheus-client", "uvicorn"])
def test_versions_of_what_has_internals_that_are_used_are_bounded(name: str) -> None:
    assert {bound.operator for bound in REQUIRED[name]} == {">=", "<"}
    assert REQUIRED[name].contains(version(name))


def replaced(source: str) -> list[str]:
    """The assignments to parts of an imported name that is not of kdc."""
    tree = ast.parse(source)
    of_others = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "module", "").startswith("kdc"):
            of_others |= {(name.asname or name.name).partition(".")[0] for name in node.names}
    lines = []
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for part in targets:
            while isinstance(part, ast.Attribute | ast.Subscript):
                part = part.value
                if isinstance(part, ast.Name) and part.id in of_others - {"os"}:
                    lines.append(ast.unparse(node))
    return lines


def test_no_other_file_replaces_parts_of_libraries() -> None:
    assert replaced("import a.b\na.b.c['d'] = 1") == ["a.b.c['d'] = 1"]
    installed = {package.partition(".")[2].partition(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    files = [path for path in tracked() if path.suffix == ".py" and path.parts[0] in {*installed, "cli.py"}]
    found = {path.as_posix() for path in files if replaced((ROOT / path).read_text(encoding="utf-8"))}
    assert found == {"serving/http/patches.py"}

"""Names of our rooms that others use too: modules beside a script, and other wheels."""

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import bag_models
import httpx2
import numpy as np
import pytest
from environments import Environment, Maker

pytestmark = pytest.mark.install

SCRIPT = """
import json, sys
import artifact, cli, common, errors, pipeline, serving.engine, tools
import kdc

assert all(module.OWNER == "another" for module in (artifact, cli, common, errors, pipeline, serving.engine, tools))
with kdc.load(sys.argv[1], device="cpu", threads=1) as engine:
    print(json.dumps([engine.labels, engine.predict(["w1 w2", "w5"]).tolist()]))
"""


def write_modules(folder: Path) -> None:
    """Another's modules by the names of our rooms: files, packages, and a folder without `__init__.py`."""
    files = ("artifact.py", "cli.py", "errors.py", "pipeline.py")
    for name in (*files, "common/__init__.py", "serving/engine.py", "tools/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("OWNER = 'another'\n", encoding="utf-8")


def expected() -> np.ndarray:
    """What the artifact answers to "w1 w2" and to "w5", by numpy: int8 is 1.01 times the table."""
    logits = np.array([bag_models.expected_logits(text, scale=1.01) for text in ("w1 w2", "w5")])
    powers = np.exp(logits / 2)  # the temperature of the artifact
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("way", ["with_wheel", "editable"])
def test_a_script_beside_modules_by_our_names(
    way: str, artifact: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment: Environment = request.getfixturevalue(way)
    write_modules(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    labels, probabilities = json.loads(environment.run("python", "script.py", artifact, cwd=tmp_path))
    assert labels == list(bag_models.SINGLE.labels)
    np.testing.assert_allclose(probabilities, expected(), rtol=1e-5)


@pytest.mark.parametrize("command", [("kdc",), ("python", "-m", "kdc")], ids=" ".join)
def test_the_command_beside_modules_by_our_names(
    command: tuple[str, ...], artifact: Path, with_wheel: Environment, tmp_path: Path
) -> None:
    write_modules(tmp_path)
    answer = json.loads(with_wheel.run(*command, "try", artifact, "w1 w2", "--json", cwd=tmp_path))
    assert [entry["score"] for entry in answer["scores"]] == pytest.approx(
        sorted(expected()[0], reverse=True), rel=1e-5
    )


def test_serving_beside_modules_by_our_names(artifact: Path, with_wheel: Environment, tmp_path: Path) -> None:
    """BentoML puts the folder that it is started in before all others."""
    write_modules(tmp_path)
    with with_wheel.serving("kdc", "serve", artifact, "--device", "cpu", cwd=tmp_path) as url:
        answer = httpx2.post(f"{url}/predict", json={"inputs": "w1 w2"}).json()
    assert [entry["score"] for entry in answer] == pytest.approx(sorted(expected()[0], reverse=True), rel=1e-5)


def test_another_wheel_with_our_names_comes_and_goes(maker: Maker, wheel: Path, artifact: Path, tmp_path: Path) -> None:
    environment = maker.make("neighbours", wheel)
    environment.install(other_wheel(tmp_path))
    beside = json.loads(environment.run("python", "-c", SCRIPT, artifact, cwd=tmp_path))
    environment.pip("uninstall", "--yes", "other")
    alone = json.loads(environment.run("kdc", "try", artifact, "w1 w2", "--json", cwd=tmp_path))
    np.testing.assert_allclose(beside[1], expected(), rtol=1e-5)
    assert alone["scores"][0]["score"] == pytest.approx(expected()[0].max(), rel=1e-5)


def other_wheel(folder: Path) -> Path:
    """A wheel `other` that brings modules by the names of our rooms."""
    write_modules(folder / "other")
    modules = (path for path in (folder / "other").rglob("*.py"))
    files = {path.relative_to(folder / "other").as_posix(): path.read_bytes() for path in modules}
    about = "other-1.dist-info"
    files[f"{about}/METADATA"] = b"Metadata-Version: 2.1\nName: other\nVersion: 1\n"
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    path = folder / "other-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")

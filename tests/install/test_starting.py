"""Ways to start what is installed: children of each kind, BentoML by name, and a Bento where kdc is not installed."""

import json
from pathlib import Path

import bag_models
import httpx2
import pytest
from environments import Environment
from tracked import tracked

pytestmark = pytest.mark.install

CHILDREN = """
import json, multiprocessing, sys


def predict(artifact):
    import kdc

    with kdc.load(artifact, device="cpu", threads=1) as engine:
        return engine.labels[engine.predict(["w1 w2"])[0].argmax()]


if __name__ == "__main__":
    labels = {}
    for method in ("spawn", "fork", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            labels[method] = pool.apply(predict, (sys.argv[1],))
    print(json.dumps(labels))
"""
BEST = bag_models.SINGLE.labels[int(bag_models.expected_logits("w1 w2").argmax())]


@pytest.fixture(scope="module")
def store(checkout: Path, with_wheel: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BentoML's store with the Bento that `bentoml build` makes in a checkout."""
    folder = tmp_path_factory.mktemp("store")
    with (checkout / "pyproject.toml").open("a", encoding="utf-8") as file:
        # Locking asks the registry for every version, and is nothing that these tests look at.
        file.write("\n[tool.bentoml.build.python]\nlock_packages = false\n")
    with_wheel.run("python", "-m", "bentoml", "build", cwd=checkout, BENTOML_HOME=str(folder))
    return folder


def test_children_of_each_kind_load_an_artifact(with_wheel: Environment, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "children.py").write_text(CHILDREN, encoding="utf-8")
    labels = json.loads(with_wheel.run("python", "children.py", artifact, cwd=tmp_path))
    assert labels == dict.fromkeys(("spawn", "fork", "forkserver"), BEST)


@pytest.mark.parametrize("way", ["with_wheel", "editable"])
@pytest.mark.parametrize("command", [("kdc",), ("python", "-m", "kdc")], ids=" ".join)
def test_the_program_and_the_module_are_the_same(
    way: str, command: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment: Environment = request.getfixturevalue(way)
    assert "compress" in environment.run(*command, "--help", cwd=tmp_path)


def test_bentoml_serves_the_installed_service(with_wheel: Environment, artifact: Path, tmp_path: Path) -> None:
    command = ("python", "-m", "bentoml", "serve", "kdc.serving.service:Classifier")
    with with_wheel.serving(*command, cwd=tmp_path, KDC_ARTIFACT=str(artifact)) as url:
        assert httpx2.post(f"{url}/predict", json={"inputs": "w1 w2"}).json()[0]["label"] == BEST


def test_a_bento_answers_where_kdc_is_not_installed(
    store: Path, without_kdc: Environment, artifact: Path, tmp_path: Path
) -> None:
    variables = {"BENTOML_HOME": str(store), "KDC_ARTIFACT": str(artifact), "KDC_WORKERS": "2"}
    with without_kdc.serving("python", "-m", "bentoml", "serve", "kdc:latest", cwd=tmp_path, **variables) as url:
        assert httpx2.post(f"{url}/predict", json={"inputs": "w1 w2"}).json()[0]["label"] == BEST
        assert httpx2.get(f"{url}/readyz").text == "yes\n"  # of our app: BentoML's gets no request


def test_a_bento_is_loaded_by_python(store: Path, without_kdc: Environment, tmp_path: Path) -> None:
    code = "import bentoml; service = bentoml.load('kdc:latest'); print(service.name, sorted(service.apis))"
    assert without_kdc.run("python", "-c", code, cwd=tmp_path, BENTOML_HOME=str(store)) == "kdc ['classify']\n"


def test_a_bento_carries_only_what_serves(store: Path) -> None:
    (source,) = (store / "bentos" / "kdc").glob("*/src")
    files = (path for path in source.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    carried = {path.relative_to(source).as_posix() for path in files}
    rooms = {path.as_posix() for path in tracked() if path.parts[0] in ("artifact", "common", "serving")}
    serving = {name for name in rooms if not name.startswith("serving/bulk/")}
    assert carried - {"bentofile.yaml"} == serving | {"__init__.py", "deploy/__init__.py", "deploy/bento.py"}

"""deploy/kserve, and KServe's own Python client against a running service.

kserve would hold psutil, protobuf and pandas back by a major version, so it has an environment of its own:
`make test-kserve`.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from bag_models import write_artifact
from live import ROOT, served
from manifests import DEPLOY, K8S, pod_of, render

from kdc.serving.engine.engine import Engine
from kdc.serving.http.settings import resolve

PYTHON = ROOT / ".venv-kserve" / "bin" / "python"
SCRIPT = Path(__file__).with_name("kserve_client.py")
FILES = {"cpu": DEPLOY / "kserve" / "inferenceservice.yaml", "gpu": DEPLOY / "kserve" / "inferenceservice-gpu.yaml"}
# Fields of a predictor that are KServe's; all others are of a pod.
OF_KSERVE = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
TEXTS = ["w1", "w2 w3", "w4 ü"]
TOKEN = "s3cret"


def predictor(device: str) -> dict[str, Any]:
    document = yaml.safe_load(FILES[device].read_text(encoding="utf-8"))
    spec: dict[str, Any] = document["spec"]["predictor"]
    return spec


def with_kserve(*arguments: str) -> Any:
    """What the script prints, run where kserve is."""
    done = subprocess.run([str(PYTHON), str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kserve() -> None:
    if not PYTHON.exists():
        pytest.skip("needs kserve in an environment of its own: make test-kserve")


@pytest.mark.parametrize("device", FILES)
def test_the_predictor_is_a_pod_that_kubernetes_takes(device: str) -> None:
    spec = {key: value for key, value in predictor(device).items() if key not in OF_KSERVE}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kdc"}, "spec": spec}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("device", FILES)
def test_the_predictor_is_guarded_and_drains_as_the_deployment_does(device: str) -> None:
    ours = predictor(device)
    plain = pod_of(render(K8S / "overlays" / device))
    for key in ("terminationGracePeriodSeconds", "automountServiceAccountToken", "enableServiceLinks", "tolerations"):
        assert ours.get(key) == plain.get(key)
    assert ours["securityContext"].items() <= plain["securityContext"].items()
    ((one,), (other,)) = ours["containers"], plain["containers"]
    assert one["securityContext"] == other["securityContext"]
    assert {k: str(v) for k, v in one["resources"]["limits"].items()} == {
        k: str(v) for k, v in other["resources"]["limits"].items()
    }
    own = ("KDC_ARTIFACT", "PROTOCOL", "STORAGE_URI")  # the rest is set alike
    settings, wanted = (
        {each["name"]: each for each in container["env"] if each["name"] not in own} for container in (one, other)
    )
    assert settings == wanted


@pytest.mark.parametrize("device", FILES)
def test_the_model_has_the_name_that_kserves_clients_expect(device: str) -> None:
    document = yaml.safe_load(FILES[device].read_text(encoding="utf-8"))
    (container,) = document["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    environment = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    assert resolve({}, environment).artifact == f"{document['metadata']['name']}=/mnt/models"
    assert environment["PROTOCOL"] == "v2"


def test_the_policies_are_of_the_predictors_pods_and_let_none_out() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kserve" / "policies.yaml").read_text(encoding="utf-8")))
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    policy, budget = (document["spec"] for document in documents)
    names = {yaml.safe_load(file.read_text(encoding="utf-8"))["metadata"]["name"] for file in FILES.values()}
    for selector in (policy["podSelector"], budget["selector"]):
        (expression,) = selector["matchExpressions"]
        assert (expression["key"], expression["operator"]) == ("serving.kserve.io/inferenceservice", "In")
        assert set(expression["values"]) == names
    assert policy["egress"] == []
    (container,) = predictor("cpu")["containers"]
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": container["ports"][0]["containerPort"]}]


@pytest.mark.kserve
@pytest.mark.usefixtures("kserve")
def test_kserves_models_know_every_field() -> None:
    of_service, of_spec, of_predictor = map(set, with_kserve("fields"))
    for file in FILES.values():
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert set(document) <= of_service
        assert set(document["spec"]) <= of_spec
        assert set(document["spec"]["predictor"]) <= of_predictor


@pytest.mark.kserve
@pytest.mark.usefixtures("kserve")
def test_kserves_client_gets_the_models_answers(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    engine = Engine.load(artifact, device="cpu")
    wanted = engine.predict(TEXTS)
    arguments = (f"kdc={artifact}", "--api-key-env", "API_TOKEN", "--threads", "1")
    with served(tmp_path, *arguments, API_TOKEN=TOKEN) as service:
        got = with_kserve("ask", service.url, "kdc", TOKEN, *TEXTS)
    assert (got["live"], got["ready"], got["model_ready"], got["other_model_ready"]) == (True, True, True, False)
    for form in ("json", "binary"):
        assert got[form]["id"] == "r-1"
        assert got[form]["probabilities"] == [pytest.approx(row, abs=1e-6) for row in wanted.tolist()]
        assert got[form]["label"] == [engine.labels[place] for place in wanted.argmax(axis=1)]
    assert got["no_token"][0] == 401
    status, message = got["no_text"]
    assert (status, "`text`" in message) == (422, True)  # what was wrong reaches the caller

"""deploy/k8s: what it renders to is valid for Kubernetes, and fits the service that it starts."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from live import ROOT
from manifests import K8S, compose, containers_of, one, pod_of, render

from kdc.serving.http.metrics import Metrics
from kdc.serving.http.settings import PREFIX, ServeSettings, resolve

OVERLAYS = ("cpu", "gpu")
COMBINED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("cpu", ()),
    ("gpu", ()),
    ("cpu", ("pull", "servicemonitor")),
    ("gpu", ("pull", "scrape-annotations")),
    ("cpu", ("cpu-only-hpa", "scrape-annotations")),
)
# The oldest on which all fields do what they say (matchLabelKeys, unhealthyPodEvictionPolicy), and the newest known.
VERSIONS = ("1.27", kubernetes_validate.latest_version())
# Schemas of its own that only a cluster with the operator has.
OPERATORS = {"ServiceMonitor"}
CLOSES_S = 3  # what docs/explanation/scheduling.md adds to drain delay and time limit
MARGIN_S = 5


def names(parameter: Any) -> str:
    return "+".join(parameter) or "alone" if isinstance(parameter, tuple) else str(parameter)


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("overlay", "components"), COMBINED, ids=names)
def test_every_object_is_valid(overlay: str, components: tuple[str, ...], version: str, tmp_path: Path) -> None:
    objects = compose(tmp_path, overlay, components)
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"} <= {
        each["kind"] for each in objects
    }
    for each in objects:
        if each["kind"] not in OPERATORS:
            kubernetes_validate.validate(each, version, strict=True)


def test_validation_finds_a_misspelt_field() -> None:
    deployment = one(render(K8S / "overlays" / "cpu"), "Deployment")
    deployment["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_drain_ends_before_the_pod_is_killed(overlay: str) -> None:
    pod = pod_of(render(K8S / "overlays" / overlay))
    # As the service will read them: what the manifest leaves out is the code's default.
    settings = resolve({}, environment(pod["containers"][0]))
    longest = settings.drain_delay_s + settings.timeout_s + CLOSES_S
    assert pod["terminationGracePeriodSeconds"] >= longest + MARGIN_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_variables_are_settings_and_the_token_is_a_secret(overlay: str) -> None:
    (container,) = pod_of(render(K8S / "overlays" / overlay))["containers"]
    known = {PREFIX + name.upper() for name in ServeSettings.model_fields}
    assert {each["name"] for each in container["env"] if each["name"].startswith(PREFIX)} <= known
    holder = environment(container)["KDC_API_KEY_ENV"]
    (token,) = [each for each in container["env"] if each["name"] == holder]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "kdc-token", "key": "token"}


@pytest.mark.parametrize(("overlay", "components"), COMBINED, ids=names)
def test_no_container_may_more_than_it_needs(overlay: str, components: tuple[str, ...], tmp_path: Path) -> None:
    pod = pod_of(compose(tmp_path, overlay, components))
    (uid,) = re.findall(r"^USER (\d+):\1$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert pod["securityContext"]["runAsNonRoot"]
    assert {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(uid)}
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in containers_of(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
    kinds = {each["name"]: sorted(set(each) - {"name"}) for each in pod["volumes"]}
    assert kinds == {"tmp": ["emptyDir"], "models": ["emptyDir" if "pull" in components else "persistentVolumeClaim"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_threads_are_the_whole_cores_of_the_limit(overlay: str) -> None:
    (container,) = pod_of(render(K8S / "overlays" / overlay))["containers"]
    (threads,) = [each for each in container["env"] if each["name"] == "KDC_THREADS"]
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    resources = container["resources"]
    assert resources["limits"]["cpu"].isdigit()
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"]


@pytest.mark.parametrize(("overlay", "components"), COMBINED, ids=names)
def test_everything_selects_the_same_pods(overlay: str, components: tuple[str, ...], tmp_path: Path) -> None:
    objects = compose(tmp_path, overlay, components)
    deployment = one(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == one(objects, "Service")["spec"]["selector"]
    for selector in (
        deployment["spec"]["selector"],
        one(objects, "PodDisruptionBudget")["spec"]["selector"],
        one(objects, "NetworkPolicy")["spec"]["podSelector"],
        *(each["labelSelector"] for each in pod_of(objects)["topologySpreadConstraints"]),
    ):
        assert selector["matchLabels"] == labels
    assert one(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert pod_of(objects)["serviceAccountName"] == one(objects, "ServiceAccount")["metadata"]["name"]


def test_both_overlays_live_in_one_namespace() -> None:
    cpu, gpu = ({(each["kind"], each["metadata"]["name"]) for each in render(K8S / "overlays" / o)} for o in OVERLAYS)
    assert not cpu & gpu
    selectors = [one(render(K8S / "overlays" / o), "Service")["spec"]["selector"] for o in OVERLAYS]
    assert selectors[0] != selectors[1]


def test_the_gpu_overlay_asks_for_one_gpu_and_no_silent_cpu() -> None:
    objects = render(K8S / "overlays" / "gpu")
    (container,) = pod_of(objects)["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert environment(container)["KDC_DEVICE"] == "cuda"
    assert container["image"].endswith("-cuda")
    metrics = one(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [each["type"] for each in metrics] == ["Pods"]


def test_the_autoscaler_asks_for_a_metric_that_the_service_and_the_adapter_have() -> None:
    rules = yaml.safe_load((K8S / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]
    for overlay in OVERLAYS:
        metrics = one(render(K8S / "overlays" / overlay), "HorizontalPodAutoscaler")["spec"]["metrics"]
        (asked,) = [each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods"]
        assert [rule["name"]["as"] for rule in rules] == [asked]
        assert rules[0]["seriesQuery"].startswith(asked + "{")
        assert asked in {family.name for family in Metrics().registry.collect()}


def test_without_an_adapter_only_cores_decide(tmp_path: Path) -> None:
    metrics = one(compose(tmp_path, "cpu", ["cpu-only-hpa"]), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [each["type"] for each in metrics] == ["Resource"]


def test_the_artifact_is_pulled_to_where_the_service_looks(tmp_path: Path) -> None:
    objects = compose(tmp_path, "cpu", ["pull"])
    pod = pod_of(objects)
    ((pull,), (service,)) = pod["initContainers"], pod["containers"]
    assert pull["image"] == service["image"] == "kdc:0.1.0"  # the overlay's tag is set on both
    _, _, path = environment(service)["KDC_ARTIFACT"].partition("=")
    assert pull["command"] == ["kdc", "pull", "$(ARTIFACT_SOURCE)", path, "--expect-sha256", "$(ARTIFACT_SHA256)"]
    keys = {each["name"]: each["valueFrom"]["configMapKeyRef"] for each in pull["env"] if "valueFrom" in each}
    assert {name: (ref["key"], ref.get("optional", False)) for name, ref in keys.items()} == {
        "ARTIFACT_SOURCE": ("source", False),
        "ARTIFACT_SHA256": ("sha256", False),  # without one the pod does not start
    }
    assert not [each for each in objects if each["kind"] == "PersistentVolumeClaim"]
    assert one(objects, "NetworkPolicy")["spec"]["egress"]  # it has to reach the store


def test_the_kustomization_of_the_documentation_renders(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / "deploy-kubernetes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(# mine/kustomization.yaml.*?)```", text, re.DOTALL)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(block, encoding="utf-8")
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    objects = render(folder)
    (pull,) = pod_of(objects)["initContainers"]
    (source,) = [each for each in pull["env"] if each["name"] == "ARTIFACT_SOURCE"]
    # kustomize adds a hash to the name, so that another source is a rollout.
    assert source["valueFrom"]["configMapKeyRef"]["name"] == one(objects, "ConfigMap")["metadata"]["name"]
    assert {each["metadata"]["namespace"] for each in objects} == {"kdc"}


def test_the_servicemonitor_finds_the_service(tmp_path: Path) -> None:
    objects = compose(tmp_path, "cpu", ["servicemonitor"])
    monitor, service = one(objects, "ServiceMonitor"), one(objects, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {each["name"] for each in service["spec"]["ports"]}
    assert {each["port"] for each in monitor["spec"]["endpoints"]} <= ports

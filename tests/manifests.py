"""What `kubectl apply -k` would send for a folder of deploy/k8s, rendered without a cluster."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from live import ROOT

DEPLOY = ROOT / "deploy"
K8S = DEPLOY / "k8s"
Object = dict[str, Any]


def renderer() -> list[str]:
    """The command before the folder: kustomize of the machine, else kubectl, which carries it."""
    # The extra `test` brings kubectl beside this Python, where PATH need not lead.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if kustomize := shutil.which("kustomize", path=places):
        return [kustomize, "build"]
    if kubectl := shutil.which("kubectl", path=places):
        return [kubectl, "kustomize"]
    pytest.skip("needs kustomize or kubectl: pip install 'kdc[test]', or apt install kustomize")


def render(folder: Path) -> list[Object]:
    """All objects of a kustomization."""
    done = subprocess.run([*renderer(), str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings are of things that the next kustomize refuses
    return list(yaml.safe_load_all(done.stdout))


def compose(folder: Path, overlay: str, components: Sequence[str]) -> list[Object]:
    """An overlay with components, as somebody's own kustomization in `folder` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / "overlays" / overlay, folder)],
        "components": [os.path.relpath(K8S / "components" / name, folder) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return render(folder)


def one(objects: list[Object], kind: str) -> Object:
    """The only object of its kind."""
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def pod_of(objects: list[Object]) -> Object:
    """The Deployment's pod spec."""
    spec: Object = one(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def containers_of(pod: Object) -> list[Object]:
    """Init containers and containers."""
    return [*pod.get("initContainers", []), *pod["containers"]]

"""Gathers the facts of `kdc doctor`. Imports neither torch nor ONNX Runtime: `probes.py` tries them in processes."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common import machine
from kdc.common.errors import KdcError
from kdc.pipeline.models.minilm import HUB_ID, find_minilm
from kdc.tools.doctor.report import Hub, Minilm, Provider, Report, Torch, advise

HUB_TIMEOUT_S = 3.0
DEFAULT_ENDPOINT = "https://huggingface.co"
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_PROBE_TIMEOUT_S = 90.0
_PROBES = Path(__file__).with_name("probes.py")
# Causes in ONNX Runtime's log, the most precise first.
_CAUSES = (re.compile(r"with error: (.+)"), re.compile(r" FAIL : (.+)"), re.compile(r"(Failed to create .+)"))
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def diagnose(check_hub: bool = True) -> Report:
    report = Report(
        kdc=machine.versions(["kdc"]).get("kdc"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=installed_packages(),
        providers=tuple(providers()),
        torch=Torch(**_probe("torch")) if importlib.util.find_spec("torch") else None,
        nvidia=machine.nvidia(),
        cpu=machine.cpu(),
        cores=machine.cores(),
        memory=machine.memory(),
        hub=hub(check=check_hub),
        minilm=_minilm(),
    )
    return report.model_copy(update={"advice": tuple(advise(report))})


def installed_packages() -> dict[str, dict[str, str | None]]:
    """Versions (None if missing) by name, of the base install ("") and "compress"; empty without kdc's metadata."""
    try:
        requirements = importlib.metadata.requires("kdc") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    packages: dict[str, dict[str, str | None]] = {"": {}, "compress": {}}
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        group = extra.group(1) if extra else ""
        if group in packages:
            packages[group][name] = machine.versions([name]).get(name)
    # kdc needs only one of the two runtimes.
    if installed := machine.versions(_RUNTIMES):
        others = {name: version for name, version in packages[""].items() if name not in _RUNTIMES}
        packages[""] = {**others, **installed}
    return packages


def providers() -> list[Provider]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    listed = _probe("providers")
    answers = {name: _probe("provider", name) for name in listed.get("providers", [])} or {CPU_PROVIDER: listed}
    return [
        Provider(name=name, starts="starts" in answer, reason="" if "starts" in answer else _reason(answer))
        for name, answer in answers.items()
    ]


def hub(*, check: bool = True) -> Hub:
    """HF_HUB_OFFLINE prevents the check."""
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    if not check:
        return Hub(endpoint=endpoint, reachable=None, detail="not checked")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Hub(endpoint=endpoint, reachable=None, detail="not checked: HF_HUB_OFFLINE is set")
    answer = _probe("hub", endpoint, str(HUB_TIMEOUT_S), timeout_s=HUB_TIMEOUT_S + 2)
    detail = answer.get("detail") or _reason(answer)
    return Hub(endpoint=endpoint, reachable=bool(answer.get("reachable")), detail=detail)


def _probe(*question: str, timeout_s: float = _PROBE_TIMEOUT_S) -> dict[str, Any]:
    """The answer of `probes.py`, with stderr as `words`; or only an `error`."""
    command = [sys.executable, "-P", "-W", "ignore", str(_PROBES), *question]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer after {timeout_s:g} s"}
    words = _ANSI.sub("", done.stderr.decode("utf-8", "replace")).strip()
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode == 0 and lines:
        return {**json.loads(lines[-1]), "words": words}
    return {"error": f"ended with status {done.returncode}: {words.splitlines()[-1] if words else ''}".rstrip(": ")}


def _reason(answer: dict[str, Any]) -> str:
    reason = answer.get("error") or answer.get("reason", "")
    for pattern in _CAUSES:
        if cause := pattern.search(answer.get("words", "")):
            return f"{reason}; {cause.group(1).strip()}"
    return reason


def _minilm() -> Minilm:
    try:
        source = find_minilm()
    except KdcError as error:
        return Minilm(usable=False, from_package=True, detail=f"{error.what}; {error.remedy}")
    from_package = source != HUB_ID
    return Minilm(usable=True, from_package=from_package, detail="installed" if from_package else "from the hub")

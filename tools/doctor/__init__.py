"""`kdc doctor`: what is installed here, what really works, and what to do about what does not.

Works on an install that only serves: it imports neither torch nor ONNX Runtime itself. What may hang, crash or print is
tried in a process of its own (`probes.py`).

Reads: the installed packages' metadata, the machine (`machine.py`), the hub's address (unless told not to).
Writes: nothing.
"""

from __future__ import annotations

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

from kdc.common import machine
from kdc.common.errors import KdcError
from kdc.pipeline.training.minilm import HUB_ID, find_minilm
from kdc.tools.doctor.advice import advise
from kdc.tools.doctor.text import render

__all__ = ["advise", "diagnose", "render"]

HUB_TIMEOUT_S = 3.0
DEFAULT_ENDPOINT = "https://huggingface.co"
_PROBE_TIMEOUT_S = 90.0
_PROBES = Path(__file__).with_name("probes.py")
# In ONNX Runtime's log, the most telling first.
_CAUSES = (re.compile(r"with error: (.+)"), re.compile(r" FAIL : (.+)"), re.compile(r"(Failed to create .+)"))
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def diagnose(check_hub: bool = True) -> dict[str, Any]:
    """Look at this machine and this install.

    Args:
        check_hub: try to reach the hub (at most 3 s). HF_HUB_OFFLINE is honoured.

    Returns:
        A JSON-able report: `kdc`, `python`, `system`, `packages` {extra: {name: version or None}}, `providers`
        [{name, starts, reason}], `torch`, `nvidia`, `cpu`, `cores`, `memory`, `hub`, `minilm`, and `advice`
        [{level: "problem" or "note", what, remedy}].
    """
    packages = installed_packages()
    report: dict[str, Any] = {
        "kdc": _version("kdc"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "providers": providers(),
        "torch": _torch(),
        "nvidia": machine.nvidia(),
        "cpu": machine.cpu(),
        "cores": machine.cores(),
        "memory": machine.memory(),
        "hub": hub() if check_hub else {"endpoint": _endpoint(), "reachable": None, "detail": "not checked"},
        "minilm": _minilm(),
    }
    report["advice"] = advise(report)
    return report


def installed_packages() -> dict[str, dict[str, str | None]]:
    """Versions of what kdc depends on: "" the base install, "compress" the extra; None for what is not installed.

    Empty where kdc itself is not installed: its metadata is the only list of its dependencies.
    """
    try:
        requirements = importlib.metadata.requires("kdc") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str | None]] = {"": {}, "compress": {}}
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        group = extra.group(1) if extra else ""
        if group in found:
            found[group][name] = _version(name)
    # One of the two is right, by platform: where there is one, the other is not missing.
    versions = {name: _version(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    if any(versions.values()):
        for name, version in versions.items():
            found[""].pop(name, None)
            if version:
                found[""][name] = version
    return found


def providers() -> list[dict[str, Any]]:
    """Every execution provider that ONNX Runtime lists, and whether a model really runs on it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    listed = _ask("providers")
    found = []
    for name in listed.get("providers", []):
        answer = _ask("provider", name)
        starts = bool(answer.get("starts"))
        reason = "" if starts else _reason(answer)
        found.append({"name": name, "starts": starts, "reason": reason})
    if not found:
        found.append({"name": "CPUExecutionProvider", "starts": False, "reason": _reason(listed)})
    return found


def hub() -> dict[str, Any]:
    """Whether the configured hub answers within three seconds. `reachable` is None where it must not be asked."""
    endpoint = _endpoint()
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return {"endpoint": endpoint, "reachable": None, "detail": "not checked: HF_HUB_OFFLINE is set"}
    answer = _ask("hub", endpoint, str(HUB_TIMEOUT_S), timeout_s=HUB_TIMEOUT_S + 2)
    return {
        "endpoint": endpoint,
        "reachable": bool(answer.get("reachable")),
        "detail": answer.get("detail") or _reason(answer),
    }


def _ask(*question: str, timeout_s: float = _PROBE_TIMEOUT_S) -> dict[str, Any]:
    """Put a question to `probes.py`; where it gives no answer, `error` says why."""
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
    """Why a provider does not start: what was seen, and the cause in ONNX Runtime's own log."""
    seen = answer.get("error") or answer.get("reason", "")
    for pattern in _CAUSES:
        if cause := pattern.search(answer.get("words", "")):
            return f"{seen}; {cause.group(1).strip()}"
    return seen


def _torch() -> dict[str, Any] | None:
    """What PyTorch says of CUDA; None where it is not installed."""
    return _ask("torch") if importlib.util.find_spec("torch") else None


def _minilm() -> dict[str, Any]:
    """Where the minilm family's teacher would come from."""
    try:
        place = find_minilm()
    except KdcError as error:
        return {"usable": False, "from_package": True, "detail": f"{error.what}; {error.remedy}"}
    from_package = place != HUB_ID
    return {"usable": True, "from_package": from_package, "detail": "installed" if from_package else "from the hub"}


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT


def _version(package: str) -> str | None:
    return machine.versions([package]).get(package)

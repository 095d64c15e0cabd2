"""`kdc serve` as a process: what it prints, how it ends, how it refuses to start, and the clients that people have."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx2
import psutil
import pytest
from bag_models import SINGLE, write_artifact
from live import Process, connect, free_port, resident_bytes, served

from kdc.common.errors import InputError, KdcError
from kdc.serving import launch
from kdc.serving.engine.engine import Engine
from kdc.serving.http import runtime
from kdc.serving.http.registry import verify
from kdc.serving.http.settings import ServeSettings
from kdc.serving.launch import bound_socket
from kdc.serving.workers import Workers


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("runs") / "mood" / "artifact")


@pytest.fixture(scope="module")
def service(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "home").mkdir()
    with served(folder, str(artifact), "--drain-delay", "0", HOME=str(folder / "home")) as process:
        yield process


def workers(process: Process) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.popen.pid).children() if "worker" in _command(child)]


def _command(child: psutil.Process) -> str:
    try:
        return " ".join(child.cmdline())
    except psutil.NoSuchProcess:  # it has ended, or is about to be reaped
        return ""


def test_the_start_tells_what_is_served_and_how(service: Process, artifact: Path) -> None:
    printed = service.printed()
    assert f"serving mood: {artifact}" in printed.splitlines()[0]
    for part in (service.url, "/playground", "limits:", "mood: int8 on CPUExecutionProvider, ", " threads, ready"):
        assert part in printed


def folder_of(service: Process) -> Path:
    """The folder that the service keeps for as long as it runs."""
    return Path(workers(service)[0].environ()[runtime.DIRECTORY])


def test_nothing_listens_but_the_service_itself(service: Process) -> None:
    # BentoML's supervisor would take commands on two TCP ports, from every user of the machine.
    family = [psutil.Process(service.popen.pid), *psutil.Process(service.popen.pid).children(recursive=True)]
    listening = {
        connection.laddr.port
        for process in family
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {int(service.url.rpartition(":")[2])}


def test_the_services_folder_is_closed_to_other_users(service: Process) -> None:
    folder = folder_of(service)
    assert folder.stat().st_mode & 0o077 == 0
    assert not any(path.is_socket() for path in folder.iterdir())
    if os.getuid() == 0:
        assert subprocess.run(["ls", folder], user=65534, capture_output=True, check=False).returncode != 0


def test_folders_of_services_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bug to catch: the folder of a service that runs is removed, in which are its sockets and metrics.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = tmp_path / "kdc-serve-abc"
    killed.mkdir()
    (killed / "lock").touch()
    odd = [tmp_path / name for name in ("kdc-serve-", "kdc-serve-\u00b2-x", "other-abc")]
    for folder in odd:
        folder.mkdir()
    (tmp_path / "kdc-serve-file").touch()
    (tmp_path / "kdc-serve-link").symlink_to(tmp_path / "other-abc")
    with runtime.own_folder() as one:
        assert not killed.exists()
        other = subprocess.run(
            [sys.executable, "-c", "from kdc.serving.http import runtime\nwith runtime.own_folder() as it: print(it)"],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert one.exists()
        assert not Path(other.stdout.strip()).exists()
    assert sorted(tmp_path.iterdir()) == sorted([*odd, tmp_path / "kdc-serve-file", tmp_path / "kdc-serve-link"])


HUB_CLIENT = """
import json, sys
from huggingface_hub import InferenceClient
client = InferenceClient(sys.argv[1])
answers = [client.text_classification("w1 w2", top_k=top_k) for top_k in (None, 1, 2)]
print(json.dumps([[[entry.label, entry.score] for entry in answer] for answer in answers]))
"""


def test_the_hubs_client_gets_the_engines_answers(service: Process, artifact: Path) -> None:
    (expected,) = Engine.load(artifact, device="cpu").predict(["w1 w2"])
    done = subprocess.run(  # in a process of its own: it reads at import that it may ask addresses
        [sys.executable, "-c", HUB_CLIENT, service.url],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
    )
    for top_k, answer in zip((3, 1, 2), json.loads(done.stdout), strict=True):
        assert len(answer) == top_k
        label, score = answer[0]
        assert label == SINGLE.labels[expected.argmax()]
        assert score == pytest.approx(expected.max(), abs=1e-6)


def test_bentomls_client_gets_the_engines_answers(service: Process, artifact: Path) -> None:
    import bentoml

    expected = Engine.load(artifact, device="cpu").predict(["w1", "w2 w3"])
    with bentoml.SyncHTTPClient(service.url) as client:
        got = client.classify(texts=["w1", "w2 w3"])
    assert [answer[0]["score"] for answer in got] == pytest.approx(expected.max(axis=1).tolist(), abs=1e-6)


def test_bentomls_routes_are_answered_by_our_app(service: Process) -> None:
    """Would catch a request that BentoML's own code sees: it keeps a timer of eleven seconds for each."""
    for route in ("/livez", "/readyz", "/healthz", "/schema.json"):
        assert httpx2.get(service.url + route).status_code == 200
    counted = httpx2.get(f"{service.url}/metrics").text
    for route in ("/livez", "/readyz", "/healthz", "/schema.json"):
        assert f'kdc_requests_total{{route="{route}",status="200"}}' in counted


async def ask_for_all_lengths(url: str, requests: int = 100) -> None:
    """Ask with texts and batches of all sizes over several connections."""
    dice, left = random.Random(0), requests

    async def one_connection(client: httpx2.AsyncClient) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            texts = ["w1 " * dice.randint(1, 200) for _ in range(dice.choice((1, 1, 8, 64)))]
            reply = await client.post(f"{url}/predict", json={"inputs": [[text] for text in texts]})
            assert reply.status_code == 200
            assert len(reply.json()) == len(texts)

    async with httpx2.AsyncClient(timeout=30) as client:
        await asyncio.gather(*(one_connection(client) for _ in range(8)))


def test_memory_is_flat_over_requests_of_all_lengths(service: Process) -> None:
    asyncio.run(ask_for_all_lengths(service.url))  # the allocators take what they need
    before = resident_bytes(service)
    asyncio.run(ask_for_all_lengths(service.url))
    assert resident_bytes(service) - before < 15e6


def test_metrics_are_ours_and_of_all_workers(service: Process) -> None:
    httpx2.post(f"{service.url}/predict", json={"inputs": "w1"})
    text = httpx2.get(f"{service.url}/metrics").text
    assert "kdc_requests_total" in text
    assert "bentoml" not in text


def test_onnx_runtime_keeps_no_reports_to_send(service: Process) -> None:
    httpx2.post(f"{service.url}/predict", json={"inputs": "w1"})
    home = service.log.parent / "home"
    assert [path for path in home.rglob("*") if "onnxruntime" in path.name] == []


def test_a_worker_imports_no_torch_and_calls_nobody(service: Process) -> None:
    (worker,) = workers(service)
    mapped = " ".join(entry.path for entry in worker.memory_maps())
    assert "onnxruntime" in mapped
    for heavy in ("/torch/", "/transformers/", "/scipy/", "/pandas/"):
        assert heavy not in mapped
    for process in (worker, psutil.Process(service.popen.pid)):
        outside = [
            link for link in process.net_connections() if link.raddr and link.raddr.ip not in ("127.0.0.1", "::1")
        ]
        assert outside == []


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_under_load_loses_nothing(artifact: Path, tmp_path: Path, count: int) -> None:
    alone = Engine.load(artifact, device="cpu", threads=1)
    texts = [f"w{n % 20} w{n % 7}" for n in range(140)]
    expected = alone.predict(texts).max(axis=1)
    statuses: list[int] = []
    failures: list[str] = []

    async def client_loop(client: httpx2.AsyncClient, url: str, offset: int, until: asyncio.Event) -> None:
        number = offset
        while not until.is_set():
            number += 1
            try:
                reply = await client.post(f"{url}/predict", json={"inputs": texts[number % len(texts)]})
            except httpx2.ConnectError:
                return  # refused: the service is gone
            except httpx2.TransportError as error:
                failures.append(repr(error))
                return
            statuses.append(reply.status_code)
            if reply.status_code == 200:
                assert reply.json()[0]["score"] == pytest.approx(expected[number % len(texts)], abs=1e-6)
            else:
                assert reply.status_code == 503
                assert reply.headers["connection"] == "close"

    async def scenario(process: Process) -> None:
        until = asyncio.Event()
        async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=16), timeout=20) as client:
            loops = [asyncio.create_task(client_loop(client, process.url, 9 * n, until)) for n in range(8)]
            while statuses.count(200) < 30:
                await asyncio.sleep(0.01)
            process.popen.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*loops), 30)

    with served(tmp_path, str(artifact), "--drain-delay", "0.5", "--workers", str(count)) as process:
        asyncio.run(scenario(process))
        assert process.popen.wait(20) == 0
        printed = process.printed()
    assert failures == []
    assert statuses.count(503) > 0
    assert "ERROR" not in printed
    assert "Traceback" not in printed


def test_a_killed_worker_comes_back_and_the_service_goes_on(artifact: Path, tmp_path: Path) -> None:
    with served(tmp_path, str(artifact), "--workers", "2", "--drain-delay", "0") as process:
        deadline = time.monotonic() + 30
        while process.printed().count(", ready") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        first, second = workers(process)
        first.kill()
        killed = time.monotonic()
        for _ in range(20):
            assert httpx2.post(f"{process.url}/predict", json={"inputs": "w1"}, timeout=20).status_code == 200
        while {worker.pid for worker in workers(process)} <= {first.pid, second.pid}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert time.monotonic() - killed < 8
        assert second.is_running()
        assert httpx2.post(f"{process.url}/predict", json={"inputs": "w1"}, timeout=20).status_code == 200


def wait_for_the_end(worker: psutil.Process, process: Process) -> None:
    """Wait until an orphan has ended. It may stay a zombie, whose end psutil's own `wait` would wait for."""
    deadline = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"the worker is {worker.status()}; it printed: {process.printed()}"
            time.sleep(0.05)


@pytest.mark.slow  # it waits for 15 seconds
def test_where_no_worker_can_start_again_the_service_ends_as_failed(artifact: Path, tmp_path: Path) -> None:
    # The bugs to catch: nineteen starts in twenty seconds and clients that wait for ever; a service that looks alive.
    place = tmp_path / "artifact"
    shutil.copytree(artifact, place)
    with served(tmp_path, str(place), "--drain-delay", "0") as process:
        (worker,) = workers(process)
        shutil.rmtree(place)
        worker.kill()
        assert process.popen.wait(120) == 1
        printed = process.printed()
    assert "its workers cannot start" in printed
    assert printed.count("cannot start: there is no artifact here") == 5


class Worker:
    """A process as `subprocess.Popen` returns it, which is dead once it has a return code."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """The workers that were started, which are none."""
    processes: list[Worker] = []

    def start(*_: Any, **__: Any) -> Worker:
        processes.append(Worker(len(processes)))
        return processes[-1]

    monkeypatch.setattr("kdc.serving.workers.subprocess.Popen", start)
    return processes


def begun(folder: Path, count: int) -> Workers:
    """So many workers, just started."""
    listener: Any = SimpleNamespace(fileno=lambda: 3)
    workers = Workers(listener, folder, count, {})
    workers.start()
    return workers


def test_starts_come_ever_later_and_end_where_none_becomes_ready(tmp_path: Path, started: list[Worker]) -> None:
    workers, now, starts = begun(tmp_path, 1), 0.0, [0.0]
    note_ready(tmp_path, started[0].pid)
    with pytest.raises(KdcError, match="cannot start"):  # noqa: PT012
        while now < 300:
            now += 0.25
            started[-1].returncode = 1
            workers.restart(now)
            starts += [now] * (len(started) - len(starts))
    waits = [after - before for before, after in itertools.pairwise(starts)]
    assert len(waits) == 5  # the one that had been ready, and four of five that were not: then it ends
    assert waits == sorted(waits)
    assert waits[-1] >= 4


def test_a_worker_that_dies_now_and_then_is_started_at_once(tmp_path: Path, started: list[Worker]) -> None:
    workers = begun(tmp_path, 2)
    for number in range(20):
        note_ready(tmp_path, started[-1].pid)
        started[-1].returncode = -signal.SIGKILL
        workers.restart(number * 100.0)
        assert len(started) == number + 3


def test_a_worker_that_serves_keeps_the_service_when_another_cannot_start(
    tmp_path: Path, started: list[Worker]
) -> None:
    workers = begun(tmp_path, 2)
    note_ready(tmp_path, started[0].pid)
    for second in range(300):
        started[-1].returncode = 1
        workers.restart(float(second))
    assert 20 <= len(started) <= 60  # it is tried again and again, with pauses


def test_a_worker_for_which_there_is_no_memory_is_started_later(
    tmp_path: Path, started: list[Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workers = begun(tmp_path, 1)
    started[0].returncode = -signal.SIGKILL
    with monkeypatch.context() as patch:
        patch.setattr("kdc.serving.workers.subprocess.Popen", Mock(side_effect=BlockingIOError))
        workers.restart(0.0)
        workers.restart(100.0)
    assert len(started) == 1
    assert caplog.text.count("cannot be started now") == 2
    workers.restart(101.0)
    assert len(started) == 2


def test_sigterm_ends_a_service_whose_client_does_not_read(artifact: Path, tmp_path: Path) -> None:
    with (
        served(tmp_path, str(artifact), "--drain-delay", "0", "--timeout", "1") as process,
        connect(process.url) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
        time.sleep(0.5)
        process.popen.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.popen.wait(60) == 0
        took = time.monotonic() - began
    assert took < 7  # a client has ten seconds to read


def note_ready(folder: Path, worker: int) -> None:
    """Note, as a worker of this process id does, that it is ready."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: worker)
        runtime.report_ready(folder)


def test_workers_end_when_their_supervisor_is_killed(artifact: Path, tmp_path: Path) -> None:
    with served(tmp_path, str(artifact), "--drain-delay", "0") as process:
        (worker,) = workers(process)
        process.popen.kill()
        wait_for_the_end(worker, process)


def test_a_worker_that_starts_ends_when_its_supervisor_is_killed(artifact: Path, tmp_path: Path) -> None:
    process = Process(tmp_path, str(artifact), "--drain-delay", "0")
    try:
        deadline = time.monotonic() + 60
        while not (children := workers(process)):
            assert process.popen.poll() is None, process.printed()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.popen.kill()
        process.popen.wait()
    wait_for_the_end(children[0], process)


# What `kdc serve` runs, with a SIGTERM so many seconds after it has started its worker.
SUPERVISED = """
import os, signal, sys, time
from kdc.serving import launch
from kdc.serving.http.settings import resolve
class Workers(launch.Workers):
    def start(self):
        super().start()
        time.sleep(float(sys.argv[3]))
        os.kill(os.getpid(), signal.SIGTERM)
launch.Workers = Workers
values = {"artifact": sys.argv[1], "device": "cpu", "drain_delay_s": 0.0, "timeout_s": 200.0}
launch.serve(resolve(values), "127.0.0.1", int(sys.argv[2]))
"""


@pytest.mark.parametrize("seconds", ["0", pytest.param("0.004", marks=pytest.mark.slow), "0.3"])
def test_sigterm_while_a_worker_starts_is_heard(artifact: Path, seconds: str) -> None:
    command = [sys.executable, "-c", SUPERVISED, str(artifact), str(free_port()), seconds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # by force only after 402 s
    assert done.returncode == 0, done.stderr


def test_workers_that_hang_are_ended_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdc.serving.workers._WORKER", ("sh", "-c", "exec sleep 600"))
    with bound_socket("127.0.0.1", free_port()) as listener:
        workers = Workers(listener, tmp_path, 2, {})
        others = psutil.Process().children()
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which they inherit
        workers.start()
        signal.signal(signal.SIGTERM, before)
        children = [child for child in psutil.Process().children() if child not in others]
        workers.stop(0.1)
        assert len(children) == 2
        assert not any(child.is_running() for child in children)


def test_sigterm_during_the_imports_ends_the_start(artifact: Path, tmp_path: Path) -> None:
    process = Process(tmp_path, str(artifact))
    time.sleep(0.8)  # Python is up, BentoML is not
    assert process.stop() in (0, -signal.SIGTERM)


def refused(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of a start that fails."""
    process = Process(folder, *arguments, **environment)
    try:
        return process.popen.wait(60), process.printed()
    finally:
        process.popen.kill()


def tampered(artifact: Path, folder: Path, file: str) -> Path:
    """A copy of the artifact in which one bit of a file is another."""
    shutil.copytree(artifact, folder)
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("file", ["manifest.json", "model.int8.onnx", "model.onnx", "tokenizer.json"])
def test_a_tampered_artifact_is_refused(artifact: Path, tmp_path: Path, file: str) -> None:
    with pytest.raises(KdcError) as caught:
        verify(ServeSettings(artifact=str(tampered(artifact, tmp_path / "copy", file))))
    assert caught.value.remedy


def test_what_starts_the_workers_leaves_the_reading_of_files_to_them(artifact: Path, tmp_path: Path) -> None:
    """Would catch all files read once more before the workers start, which takes seconds for a large artifact."""
    folder = tampered(artifact, tmp_path / "copy", "model.onnx")
    verify(ServeSettings(artifact=str(folder)), hashes=False)
    (folder / "model.onnx").unlink()
    with pytest.raises(KdcError, match="missing"):
        verify(ServeSettings(artifact=str(folder)), hashes=False)


def test_bentomls_own_command_finds_a_tampered_artifact(artifact: Path, tmp_path: Path) -> None:
    """Would catch workers that end, and are started again, for ever."""
    tampered(artifact, tmp_path / "copy", "model.onnx")
    code = "from kdc.serving.service import Classifier; Classifier.inner.before_workers()"
    environment = {**os.environ, "KDC_ARTIFACT": str(tmp_path / "copy")}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "a file of the artifact was changed" in done.stderr


def test_a_message_is_one_line_of_the_log_and_moves_no_cursor() -> None:
    code = """import logging
from kdc.serving.service import _log_to_stderr
_log_to_stderr()
logging.getLogger("kdc.serve").error("%s is gone", "a\\n2026 ERROR\\x1b[2J")
"""
    environment = {**os.environ, "KDC_ARTIFACT": "nowhere"}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr.endswith("ERROR a 2026 ERROR\\x1b[2J is gone\n"), done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_to_serve_says_what_to_do(tmp_path: Path) -> None:
    code, printed = refused(tmp_path)
    assert code == 2
    assert "kdc compress" in printed


def test_the_newest_artifact_is_taken_where_none_is_named_and_no_tampered_one_starts(
    artifact: Path, tmp_path: Path
) -> None:
    shutil.copytree(artifact, tmp_path / "runs" / "old" / "artifact")
    tampered(artifact, tmp_path / "runs" / "new" / "artifact", "model.int8.onnx")  # the one that a CPU loads
    for age, name in ((100, "old"), (0, "new")):
        then = time.time() - age
        os.utime(tmp_path / "runs" / name / "artifact" / "manifest.json", (then, then))
    code, printed = refused(tmp_path)
    assert code == 1
    assert "runs/new/artifact" in printed
    assert "remedy:" in printed
    assert "Traceback" not in printed


def test_all_wrong_settings_are_told(artifact: Path, tmp_path: Path) -> None:
    code, printed = refused(tmp_path, str(artifact), KDC_WORKERS="0", KDC_TIMEOUT_S="soon")
    assert code == 2
    assert "KDC_WORKERS" in printed
    assert "KDC_TIMEOUT_S" in printed


def test_an_empty_key_does_not_open_the_service(artifact: Path) -> None:
    with pytest.raises(InputError, match="NO_SUCH_KEY"):
        verify(ServeSettings(artifact=str(artifact), api_key_env="NO_SUCH_KEY"))


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="--port"):
        bound_socket("127.0.0.1", taken.getsockname()[1])


def test_a_port_that_another_took_before_the_workers_start_is_told(tmp_path: Path) -> None:
    with bound_socket("127.0.0.1", port := free_port()) as ours, bound_socket("127.0.0.1", port) as other:
        other.listen()
        with pytest.raises(InputError, match="--port"):
            launch._run(ServeSettings(), ours, tmp_path, [])


def test_a_device_that_does_not_take_effect_stops_the_start(artifact: Path, tmp_path: Path) -> None:
    from kdc.serving.engine.providers import open_session

    try:
        open_session(lambda _: artifact / "model.onnx", device="cuda")
    except Exception:  # noqa: BLE001 - any reason will do
        code, printed = refused(tmp_path, str(artifact), "--device", "cuda")
    else:
        pytest.skip("there is a CUDA device")
    assert code == 1
    assert "CUDA did not take effect" in printed

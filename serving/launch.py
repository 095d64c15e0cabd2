"""`kdc serve`: bring and check what is to be served, start BentoML's workers, stop them cleanly.

Reads the artifacts; sets `KDC_*` for the workers. BentoML's supervisor runs in a thread of its own, so that signals and
a worker that cannot start are handled here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME
from kdc.artifact.stores.addresses import BENTO, is_address
from kdc.common.errors import InputError, KdcError
from kdc.serving.http import drain
from kdc.serving.http.registry import parse_artifacts, split_artifacts, verify
from kdc.serving.http.settings import ServeSettings

_LOOK_S = 0.2
_KILLED_S = 5.0


def newest_artifact(runs: Path = Path("runs")) -> Path:
    """The artifact under `runs/` that was finished last.

    Raises:
        InputError: there is none.
    """
    found = [path.parent for path in runs.glob(f"*/artifact/{MANIFEST_NAME}")]
    if not found:
        raise InputError(
            "there is no artifact to serve",
            given=f"{runs}/*/artifact",
            remedy="make one with `kdc compress --task pydocs --family minilm`, or name one: `kdc serve ARTIFACT`",
        )
    return max(found, key=lambda path: (path / MANIFEST_NAME).stat().st_mtime)


def absolute(artifacts: str) -> str:
    """The same artifacts by absolute paths: workers may run elsewhere. Links stay links, addresses addresses."""
    return ",".join(
        f"{name}={place if is_address(place) else os.path.abspath(place)}"
        for name, place in split_artifacts(artifacts).items()
    )


def local(artifacts: str, *, allow_failed: bool = False) -> str:
    """The same artifacts by paths: those of addresses are brought into the cache, once for all workers.

    Raises:
        KdcError: there is none at an address, it cannot be reached, or what arrived is damaged.
    """
    if not is_address(artifacts) and BENTO not in artifacts:
        return artifacts  # nothing that reaches stores is imported
    from kdc.artifact.stores.cache import cached

    return ",".join(
        f"{name}={cached(name, place, allow_failed=allow_failed) if is_address(place) else place}"
        for name, place in split_artifacts(artifacts).items()
    )


def address_of(host: str, port: int) -> str:
    """The host as an IP address on which the port is free.

    Raises:
        InputError: no such host, or the port is taken.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError) as error:
        raise InputError(
            "there is no such host", given=f"{host}:{port}", remedy="--host 0.0.0.0, or 127.0.0.1"
        ) from error
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((place[0], port))
    except OSError as error:
        raise InputError(
            f"cannot listen there: {error.strerror}", given=f"{host}:{port}", remedy="take another one with --port"
        ) from error
    return str(place[0])


def serve(settings: ServeSettings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: with absolute artifact paths (see `absolute`), or addresses.
        host: name or IP address to listen on.
        port: TCP port.

    Raises:
        KdcError: an artifact is damaged, a worker could not start, or BentoML's supervisor ended by itself.
    """
    address = address_of(host, port)
    paths = local(settings.artifact, allow_failed=settings.allow_failed)
    settings = settings.model_copy(update={"artifact": paths})
    verify(settings)
    with tempfile.TemporaryDirectory(prefix="kdc-serve-") as name:
        runtime = Path(name)
        os.environ.update(settings.environment() | {drain.RUNTIME_DIR: name, drain.SUPERVISOR: str(os.getpid())})
        _announce(settings, host, port)
        from kdc.serving import service

        # The drain, the requests that were admitted, and what a worker needs to close.
        bound_s = settings.drain_delay_s + 2 * settings.timeout_s + 2
        _run(service.Classifier, address, port, runtime, bound_s)
        if (runtime / drain.FAILED).exists():
            raise _failure(json.loads((runtime / drain.FAILED).read_text(encoding="utf-8")))


def _run(service: Any, address: str, port: int, runtime: Path, bound_s: float) -> None:
    import circus.controller
    from bentoml._internal.configuration.containers import BentoMLContainer

    circus.controller.SysHandler = _NoSignals
    # Its own folder for each instance: BentoML wipes it at the start.
    BentoMLContainer.prometheus_multiproc_dir.set(str(runtime / "metrics"))
    service.working_dir = str(runtime)  # BentoML puts it on sys.path: nothing there hides a module
    stop: list[int] = []
    with _signals(stop):
        supervisor = service.serve_http(host=address, port=port, threaded=True).arbiter
        try:
            while not stop and not (runtime / drain.FAILED).exists():
                time.sleep(_LOOK_S)
                if not supervisor._thread.is_alive():
                    raise KdcError(
                        "the service stopped: what starts its workers has ended",
                        given=f"{address}:{port}",
                        remedy="why stands above; if the port was taken meanwhile, take another one with --port",
                    )
                if (runtime / drain.STARTED).exists():
                    supervisor.loop.add_callback(_bring_back, supervisor)
        finally:
            (runtime / drain.STOPPING).touch()
            _stop(supervisor, bound_s)


class _NoSignals:
    """In place of circus's own handlers: it would take SIGTERM from us, until we take it back."""

    def __init__(self, controller: Any) -> None:
        pass

    def stop(self) -> None:
        pass


def _stop(supervisor: Any, bound_s: float) -> None:
    """Stop the workers, by force where they take too long: a forward pass may hang."""
    import psutil

    until, died = time.monotonic() + bound_s, not supervisor._thread.is_alive()
    # Asked again and again: it hears nothing while it starts, or is busy with its workers.
    while supervisor._thread.is_alive() and time.monotonic() < until:
        if supervisor.loop is not None:
            supervisor.loop.add_callback(_end, supervisor)
        supervisor._thread.join(_LOOK_S)
    if died or supervisor._thread.is_alive():
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        supervisor._thread.join(_KILLED_S)


def _end(supervisor: Any) -> None:
    """In the supervisor's thread: what its `stop` does there."""
    from bentoml._internal.utils.circus import Arbiter
    from circus.exc import ConflictError

    with suppress(ConflictError):  # it is busy with its workers, or stops already
        Arbiter.stop(supervisor)


def _bring_back(supervisor: Any) -> None:
    """In the supervisor's thread: start workers in place of dead ones. By itself it looks every ten seconds."""
    from circus.exc import ConflictError

    with suppress(ConflictError):  # it is busy with its workers already
        supervisor.manage_watchers()


@contextmanager
def _signals(stop: list[int]) -> Iterator[None]:
    def handler(number: int, _: FrameType | None) -> None:
        stop.append(number)  # nothing with a lock: this thread may hold it

    before = {each: signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # artifacts reload by themselves
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)


def _announce(settings: ServeSettings, host: str, port: int) -> None:
    lines = [f"serving {name}: {path}" for name, path in parse_artifacts(settings.artifact).items()]
    shown = f"[{host}]" if ":" in host else host
    lines.append(f"at http://{shown}:{port}, playground at /playground, API at /docs, metrics at /metrics")
    lines.append(
        f"limits: {settings.max_body_bytes} bytes a body, {settings.max_texts} texts a request, "
        f"{settings.max_text_chars} characters a text, {settings.max_queue_tokens} tokens queued, "
        f"{settings.max_requests} requests at a time, {settings.timeout_s:g} s each"
    )
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


def _failure(problem: dict[str, Any]) -> KdcError:
    kind = InputError if problem["exit_code"] == InputError.exit_code else KdcError
    return kind(problem["what"], given=problem["given"], remedy=problem["remedy"])

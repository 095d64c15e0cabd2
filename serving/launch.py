"""`kdc serve`: fetches and checks the artifacts, starts BentoML's workers, stops them cleanly.

Reads the artifacts; sets `KDC_*` for the workers. BentoML's supervisor runs in a thread of its own, so that this module
handles signals and workers that cannot start.
"""

import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from kdc.common.errors import InputError, KdcError
from kdc.serving.http import runtime
from kdc.serving.http.artifacts import local, paths_by_name
from kdc.serving.http.registry import verify
from kdc.serving.http.settings import ServeSettings, check_grpc
from kdc.serving.workers import Restarts, running

_LOOK_S = 0.2  # seconds between two looks at the supervisor
_SOCKETS = ("control", "events")  # of the supervisor, in the service's folder
_SOCKET_PATH = 107  # bytes of a socket's path at the most, on Linux
_KILLED_S = 5.0  # seconds that the supervisor gets to end once its workers were killed


def address_of(host: str, port: int, host_option: str = "--host", option: str = "--port") -> str:
    """The host's IP address; checks that the port is free there. BentoML takes no host names. The options are those by
    which the two came.

    Raises:
        InputError: there is no such host, or the port is taken.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:  # the last: what cannot be a name
        raise InputError(
            "there is no such host", given=f"{host}:{port}", remedy=f"use 0.0.0.0 or 127.0.0.1 in {host_option}"
        ) from error
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((place[0], port))
    except OSError as error:
        raise InputError(
            f"cannot listen there: {error.strerror}", given=f"{host}:{port}", remedy=f"take another one with {option}"
        ) from error
    return str(place[0])


def serve(settings: ServeSettings, host: str, port: int) -> None:
    """Serve on a host (name or IP address) and TCP port until SIGTERM or SIGINT.

    Raises:
        KdcError: an artifact is damaged, a worker could not start, or BentoML's supervisor ended by itself.
    """
    address = address_of(host, port)
    if settings.grpc_address is not None:
        check_grpc(settings)
        grpc_host, _, grpc_port = settings.grpc_address.rpartition(":")
        address_of(grpc_host.strip("[]"), int(grpc_port), *2 * ["--grpc-address"])
    paths = local(settings.artifact, allow_failed=settings.allow_failed, expect_sha256=settings.expect_sha256)
    settings = settings.model_copy(update={"artifact": paths})
    verify(settings, hashes=False)  # a worker that finds a damaged file tells this process, which ends with its error
    # Signals are only noted from here on: an exception that a handler raises is lost where a C extension is imported.
    with _signals() as stop, runtime.own_folder() as folder:
        _check_sockets(folder)
        os.environ.update(settings.environment() | {runtime.DIRECTORY: str(folder)})
        _announce(settings, host, port)
        from kdc.serving import service

        # The drain, then the requests that were admitted, then two seconds for a worker to close.
        bound_s = settings.drain_delay_s + 2 * settings.timeout_s + 2
        if not stop:
            _run(service.Classifier, address, port, folder, bound_s, settings.workers, stop)
        if (failure := runtime.read_failure(folder)) is not None:
            raise failure


def _run(service: Any, address: str, port: int, folder: Path, bound_s: float, workers: int, stop: list[int]) -> None:
    """Run the workers until a signal is noted in `stop`, or none of them can start."""
    import circus.controller
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.utils import circus as bentoml_circus

    # Circus's own handlers would take SIGTERM away from this module.
    circus.controller.SysHandler.SIGNALS = []
    # One folder for each instance, since BentoML empties it at the start.
    BentoMLContainer.prometheus_multiproc_dir.set(str(folder / "metrics"))
    bentoml_circus.ThreadedArbiter = _private(bentoml_circus.ThreadedArbiter, folder)  # type: ignore[misc, assignment]
    # BentoML puts this folder on sys.path; the current folder may hold files that hide modules.
    service.working_dir = str(folder)
    supervisor = service.serve_http(host=address, port=port, threaded=True).arbiter
    restarts = Restarts(folder, workers)
    try:
        while not stop and runtime.read_failure(folder) is None:
            time.sleep(_LOOK_S)
            if not supervisor._thread.is_alive():
                raise KdcError(
                    "the service stopped: what starts its workers has ended",
                    given=f"{address}:{port}",
                    remedy="the reason is printed above; if the port was taken meanwhile, choose one with --port",
                )
            # The supervisor itself looks for dead workers every ten seconds.
            if restarts.due(running(supervisor.watchers)):
                supervisor.loop.add_callback(_unless_busy, supervisor.manage_watchers)
    finally:
        (folder / runtime.STOPPING).touch()
        _stop(supervisor, bound_s)


def _private(arbiter: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """A supervisor that is controlled through sockets in a folder that only its user can enter.

    BentoML 1.4 has it listen on two TCP ports of 127.0.0.1 without a password. There any user of the machine, and every
    container of the pod, could read the workers' environment, and with it the bearer token, or start programs.
    """

    def make(watchers: Any, endpoint: str, pubsub_endpoint: str, **more: Any) -> Any:
        control, events = (f"ipc://{folder / name}" for name in _SOCKETS)
        return arbiter(watchers, endpoint=control, pubsub_endpoint=events, **more)

    return make


def _check_sockets(folder: Path) -> None:
    """Refuse a folder whose path is too long for the supervisor's sockets."""
    longest = max(len(os.fsencode(folder / name)) for name in _SOCKETS)
    if longest > _SOCKET_PATH:
        raise InputError(
            "the folder for temporary files has too long a path for a socket",
            given=f"{folder.parent}, {longest - _SOCKET_PATH} bytes too long",
            remedy="set TMPDIR to another folder, such as /tmp",
        )


def _stop(supervisor: Any, bound_s: float) -> None:
    """Stop the workers, by force if they take longer than `bound_s`: a forward pass may hang."""
    import psutil
    from bentoml._internal.utils.circus import Arbiter

    until, died = time.monotonic() + bound_s, not supervisor._thread.is_alive()
    # Asked repeatedly, since the supervisor ignores it while it starts or is busy with its workers.
    while supervisor._thread.is_alive() and time.monotonic() < until:
        if supervisor.loop is not None:
            supervisor.loop.add_callback(_unless_busy, functools.partial(Arbiter.stop, supervisor))
        supervisor._thread.join(_LOOK_S)
    if died or supervisor._thread.is_alive():
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        supervisor._thread.join(_KILLED_S)


def _unless_busy(command: Callable[[], object]) -> None:
    """Give the supervisor a command in its own thread, unless it is busy with its workers or stopping already."""
    from circus.exc import ConflictError

    with suppress(ConflictError):
        command()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """While the block runs, SIGTERM and SIGINT are only noted in the list that it gets."""
    stop: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        stop.append(number)  # nothing that takes a lock, which the interrupted code may hold

    before = {each: signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGINT)}
    # BentoML would restart its workers at a SIGHUP; artifacts reload by themselves.
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield stop
    finally:
        for each, old in before.items():
            signal.signal(each, old)


def _announce(settings: ServeSettings, host: str, port: int) -> None:
    lines = [f"serving {name}: {path}" for name, path in paths_by_name(settings.artifact).items()]
    shown = f"[{host}]" if ":" in host else host
    lines.append(f"at http://{shown}:{port}, playground at /playground, API at /docs, metrics at /metrics")
    if settings.grpc_address is not None:
        lines.append(f"gRPC at {settings.grpc_address}, Open Inference Protocol")
    lines.append(
        f"limits: {settings.max_body_bytes} bytes a body, {settings.max_texts} texts a request, "
        f"{settings.max_text_chars} characters a text, {settings.max_queue_tokens} tokens queued, "
        f"{settings.max_requests} requests at a time, {settings.timeout_s:g} s each"
    )
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()

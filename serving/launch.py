"""`kdc serve`: checks the artifacts, then runs the workers until a signal.

BentoML's own supervisor is not used: it takes commands on two TCP ports without a password.
"""

import signal
import socket
import sys
import time
from pathlib import Path

from kdc.common.errors import InputError, KdcError
from kdc.serving.http import runtime
from kdc.serving.http.artifacts import paths_by_name
from kdc.serving.http.registry import verify
from kdc.serving.http.settings import ServeSettings, check_grpc
from kdc.serving.workers import Workers

_LOOK_S = 0.2
_BACKLOG = 2048  # as in BentoML


def bound_socket(host: str, port: int, option: str | None = None) -> socket.socket:
    """Bind without listening. Errors name `option`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        remedy = f"use 0.0.0.0 or 127.0.0.1 in {option or '--host'}"
        raise InputError("there is no such host", given=f"{host}:{port}", remedy=remedy) from error
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _cannot_listen(error, f"{host}:{port}", option or "--port") from error
    return bound


def _cannot_listen(error: OSError, address: str, option: str) -> KdcError:
    return InputError(f"cannot listen there: {error.strerror}", given=address, remedy=f"take another one with {option}")


def serve(settings: ServeSettings, host: str, port: int) -> None:
    with bound_socket(host, port) as listener:
        if settings.grpc_address is not None:
            check_grpc(settings)
            grpc_host, _, grpc_port = settings.grpc_address.rpartition(":")
            bound_socket(grpc_host.strip("[]"), int(grpc_port), "--grpc-address").close()
        settings = verify(settings, hashes=False)  # workers check the hashes
        stop = _noted_signals()
        with runtime.own_folder() as folder:
            _announce(settings, host, port)
            if not stop:
                _run(settings, listener, folder, stop)
            if (failure := runtime.read_failure(folder)) is not None:
                raise failure


def _run(settings: ServeSettings, listener: socket.socket, folder: Path, stop: list[int]) -> None:
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # another service listens here
        raise _cannot_listen(error, "{}:{}".format(*listener.getsockname()), "--port") from error
    workers = Workers(listener, folder, settings.workers, settings.environment())
    try:
        workers.start()
        while not stop and runtime.read_failure(folder) is None:
            workers.restart()
            time.sleep(_LOOK_S)
    finally:
        (folder / runtime.STOPPING).touch()
        # Time to drain, to answer admitted requests, and to close.
        workers.stop(settings.drain_delay_s + 2 * settings.timeout_s + 2)


def _noted_signals() -> list[int]:
    """Only note signals: a handler that raises could interrupt the stop, one that locks could deadlock."""
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return stop


def _announce(settings: ServeSettings, host: str, port: int) -> None:
    lines = [f"serving {name}: {path}" for name, path in paths_by_name(settings.artifact).items()]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines.append(f"at http://{address}, playground at /playground, API at /docs, metrics at /metrics")
    if settings.upstream is not None:
        lines.append(f"in front of {settings.upstream}: it answers what no artifact is sure of")
    if settings.grpc_address is not None:
        lines.append(f"gRPC at {settings.grpc_address}, Open Inference Protocol")
    lines.append(
        f"limits: {settings.max_body_bytes} bytes a body, {settings.max_texts} texts a request, "
        f"{settings.max_text_chars} characters a text, {settings.max_queue_tokens} tokens queued, "
        f"{settings.max_requests} requests at a time, {settings.timeout_s:g} s each"
    )
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()

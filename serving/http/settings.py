"""Settings of the service, from `KDC_*` and OpenTelemetry's `OTEL_*`."""

import importlib.util
import os
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from kdc.artifact.manifest import Device
from kdc.artifact.signature import VARIABLE
from kdc.common.errors import InputError, installing
from kdc.common.frozen import Frozen

PREFIX = "KDC_"
_EXPORTERS = {  # of traces; "console" comes with BentoML
    "otlp": "opentelemetry.exporter.otlp.proto.http.trace_exporter:OTLPSpanExporter",
    "console": "opentelemetry.sdk.trace.export:ConsoleSpanExporter",
}


def _with_host(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not 1 <= int(port) <= 65535:
        raise ValueError("the port is not between 1 and 65535")
    return f"{host or '127.0.0.1'}:{port}"


def _key_places(keys: str | list[str]) -> list[str]:
    """Make paths absolute. Workers run in another folder."""
    places = keys.split(",") if isinstance(keys, str) else keys
    return [place if place.startswith(VARIABLE) else os.path.abspath(place) for place in map(str.strip, places)]


class ServeSettings(Frozen):
    """Settings of one worker; the variable of `name` is `KDC_NAME`."""

    artifact: str = Field("", description="artifacts to serve: [NAME=]PATH or [NAME=]address, separated by commas")
    expect_sha256: str | None = Field(None, description="SHA-256 of the manifest; of several artifacts NAME=SHA256,...")
    verify_key: Annotated[list[str] | None, BeforeValidator(_key_places)] = Field(
        None, description="public keys, one of which signed each artifact: PEM files or env:NAME, separated by commas"
    )
    answers: str | None = Field(
        None,
        description="names, separated by commas: these artifacts answer every decision question with their options",
    )
    device: Device = Field("auto", description="auto is CUDA if it starts, else the CPU; cuda; tensorrt; cpu")
    variant: str | None = Field(None, description="fp32, int8, fp16 or cascade; default: the manifest's choice")
    threads: int | None = Field(None, ge=1, le=1024, description="of all forward passes; default: the cores / workers")
    workers: int = Field(1, ge=1, le=256, description="processes that share the port")

    max_body_bytes: int = Field(2 << 20, ge=1024, description="bytes of a request's body")
    max_text_chars: int = Field(200_000, ge=1, description="characters of a text, before tokenising")
    max_bodies_bytes: int = Field(128 << 20, ge=1024, description="bytes of all bodies and replies in work")
    max_reply_bytes: int = Field(16 << 20, ge=1024, description="bytes of a reply, by its number of scores")
    max_unsent_bytes: int = Field(16 << 20, ge=1024, description="bytes of all replies that clients have not read yet")
    max_texts: int = Field(1024, ge=1, description="texts (or pairs) of a request")
    max_queue_tokens: int = Field(65_536, ge=1, description="tokens that may wait for a forward pass")
    max_queue_s: float = Field(1.0, gt=0, description="seconds that the queue may take at the current speed")
    max_batch_tokens: int | None = Field(None, ge=1, description="tokens of a pass; default: 256 on a CPU, 4096 on GPU")
    max_requests: int = Field(1024, ge=1, description="concurrent requests")
    max_connections: int = Field(1024, ge=1, description="connections of a worker; open files may allow fewer")
    keep_alive_s: float = Field(75.0, gt=0, description="seconds that a connection may be idle between two requests")
    admin_port: int | None = Field(None, ge=1, le=65535, description="port of probes and metrics, at all addresses")
    grpc_address: Annotated[str, AfterValidator(_with_host)] | None = Field(
        None,
        pattern=r"^((\[[0-9A-Fa-f:.]+\]|[\w.-]+):)?[0-9]{1,5}$",
        description="[HOST:]PORT of gRPC, on 127.0.0.1 unless HOST is given; default: no gRPC",
    )
    timeout_s: float = Field(10.0, gt=0, description="seconds until a request is given up")
    drain_delay_s: float = Field(2.0, ge=0, description="seconds of answering 503 before it stops listening")
    auto_truncate: bool = Field(True, description="cut texts that are too long, unless a request says otherwise")
    api_key_env: str | None = Field(None, description="environment variable that holds the bearer token")
    allow_failed: bool = Field(False, description="also serve an artifact that failed its contract")
    reload_s: float = Field(1.0, ge=0, description="seconds between checks for a new artifact; 0: never")

    upstream: str | None = Field(None, description="URL of a decision model, which answers what no artifact is sure of")
    upstream_networks: str | None = Field(
        None, description="private networks, such as 10.0.0.0/8,..., to which the upstream's name may lead"
    )
    upstream_timeout_s: float = Field(5.0, gt=0, description="seconds until an upstream request is given up")
    upstream_connections: int = Field(256, ge=1, description="connections of a worker to the upstream")
    upstream_price: float = Field(0.0, ge=0, description="USD that the upstream takes for 1,000 questions, for metrics")
    forward_key: bool = Field(False, description="send the caller's key upstream instead of KDC_UPSTREAM_KEY")
    when_upstream_fails: Literal["error", "answer"] = Field(
        "error", description="error, or answer: with the local answer, marked x_below_threshold"
    )
    audit: float = Field(0.02, ge=0, le=1, description="share of the known questions that are compared with upstream's")
    audit_budget: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share that may be answered here and unlike upstream; default: the artifact's bound",
    )
    state_dir: str | None = Field(None, description="folder of the audits' records; default: ~/.local/state/kdc")
    resume: bool = Field(False, description="let artifacts answer again that an audit has stopped")

    @property
    def answering(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in (self.answers or "").split(",") if name.strip())

    @property
    def state_folder(self) -> Path:
        if self.state_dir is not None:
            return Path(self.state_dir)
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "kdc")

    @property
    def api_key(self) -> str | None:
        if (variable := self.api_key_env) is None:
            return None
        token = os.environ.get(variable, "")
        if not token:
            remedy = f"set {variable}, or leave out --api-key-env"
            raise InputError("the variable that should hold the API key is empty", given=variable, remedy=remedy)
        if token != token.strip() or not token.isprintable():
            what = "the API key holds a line break, or begins or ends with a space"
            remedy = "write it without a line break: `printf %s`, not `echo`"
            raise InputError(what, given=f"the variable {variable}", remedy=remedy)
        return token

    def environment(self) -> dict[str, str]:
        values = self.model_dump(exclude_none=True)
        values = {name: ",".join(value) if isinstance(value, list) else value for name, value in values.items()}
        return {PREFIX + name.upper(): str(value) for name, value in values.items()}


def resolve(flags: Mapping[str, object] | None = None, environment: Mapping[str, str] = os.environ) -> ServeSettings:
    """A flag wins over its variable."""
    values: dict[str, object] = {name: environment.get(PREFIX + name.upper()) for name in ServeSettings.model_fields}
    values = {name: value for name, value in values.items() if value}
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return ServeSettings.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors())
        remedy = "`kdc serve --help` lists them with their defaults"
        raise InputError(f"wrong setting: {problems}", remedy=remedy) from None


def check_grpc(settings: ServeSettings) -> None:
    if settings.grpc_address is not None and not all(map(importlib.util.find_spec, ("grpc", "tritonclient"))):
        raise _not_installed("grpc", "gRPC is asked for, but", f"{PREFIX}GRPC_ADDRESS={settings.grpc_address}")


def check_upstream(settings: ServeSettings) -> None:
    if settings.upstream is None:
        if settings.forward_key or settings.resume:
            given = "--forward-key" if settings.forward_key else "--resume"
            raise InputError("this needs an upstream", given=given, remedy="add --upstream URL, or leave it out")
        return
    from kdc.serving.upstream.address import base_url, networks  # slow to import

    base_url(settings.upstream)
    networks(settings.upstream_networks)
    others = {"KDC_UPSTREAM_KEY": os.environ.get("KDC_UPSTREAM_KEY"), "--api-key-env": settings.api_key_env}
    if settings.forward_key and (other := [name for name, value in others.items() if value]):
        what = "a request has one key: the caller's own for the upstream, or another"
        raise InputError(what, given=f"--forward-key and {other[0]}", remedy="keep one of them")


def trace_exporters(environment: Mapping[str, str] = os.environ) -> dict[str, Callable[[], Any]]:
    """The exporters of `OTEL_*` variables. OpenTelemetry is imported only if there is one."""
    exporters: dict[str, Callable[[], Any]] = {}
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return exporters
    for name in environment.get("OTEL_TRACES_EXPORTER", "").lower().replace(" ", "").split(","):
        if name in ("", "none"):
            continue
        given = f"OTEL_TRACES_EXPORTER={name}"
        if name not in _EXPORTERS:
            raise InputError("traces have no such exporter", given=given, remedy="set it to otlp, console or none")
        try:
            exporters[name] = pkgutil.resolve_name(_EXPORTERS[name])
        except ModuleNotFoundError:
            raise _not_installed("otel", "traces are asked for, but their exporter", given) from None
    if "otlp" in exporters:
        _check_otlp(environment)
    return exporters


def _not_installed(extra: str, what: str, given: str) -> InputError:
    return InputError(f"{what} is not installed", given=given, remedy=f"{installing(extra)}, or unset the variable")


def _check_otlp(environment: Mapping[str, str]) -> None:
    """Without this check the exporter would only log what is wrong, with every lost batch."""
    variable, protocol = _first(environment, "PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        remedy = "set it to http/protobuf; collectors take that on port 4318"
        raise InputError("traces cannot be sent by this protocol", given=f"{variable}={protocol}", remedy=remedy)
    variable, endpoint = _first(environment, "ENDPOINT")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        remedy = f"write {variable}=http://HOST:4318" + ("/v1/traces" if "TRACES" in variable else "")
        raise InputError("the collector's address is not a URL", given=f"{variable}={endpoint}", remedy=remedy)


def _first(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    for variable in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := environment.get(variable, "").strip():
            return variable, value
    return "", ""

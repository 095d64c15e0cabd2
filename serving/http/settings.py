"""Every setting of the service: what may come in, how long it may take, which artifacts it serves, where traces go.

Reads environment variables (`KDC_*`, and OpenTelemetry's `OTEL_*`), so that a container, `bentoml serve` and
`kdc serve` (which sets them for its workers) are configured alike.
"""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kdc.artifact.manifest import Device
from kdc.common.errors import InputError, installing

PREFIX = "KDC_"
_LAST_PORT = 65535
# Each exporter and the module that it needs. The module of "console" comes with BentoML.
_MODULES = {
    "otlp": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "console": "opentelemetry.sdk.trace.export",
}


_GRPC = ("grpc", "tritonclient")  # what the extra of that name brings


class ServeSettings(BaseModel):
    """Settings of one worker. Each can be set by an environment variable: `KDC_` and the name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    artifact: str = Field("", description="artifacts to serve: [NAME=]PATH or [NAME=]address, separated by commas")
    expect_sha256: str | None = Field(
        None, description="SHA-256 that the manifest must have; of several artifacts NAME=SHA256, separated by commas"
    )
    device: Device = Field("auto", description="auto is CUDA where it starts, else the CPU; cuda; tensorrt; cpu")
    variant: str | None = Field(None, description="fp32, int8, fp16 or cascade; default: what the manifest names")
    threads: int | None = Field(
        None, ge=1, le=1024, description="of all forward passes together; default: the cores / workers"
    )
    workers: int = Field(1, ge=1, le=256, description="processes that share the port")

    max_body_bytes: int = Field(2 * 1024 * 1024, ge=1024, description="bytes of a request's body")
    max_text_chars: int = Field(200_000, ge=1, description="characters of a text, before tokenising")
    max_bodies_bytes: int = Field(128 * 1024 * 1024, ge=1024, description="bytes of all bodies and replies in work")
    max_reply_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="bytes of a reply, by its number of scores")
    max_unsent_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, description="bytes of all replies that clients have not read yet"
    )
    max_texts: int = Field(1024, ge=1, description="texts (or pairs) of a request")
    max_queue_tokens: int = Field(65_536, ge=1, description="tokens that may wait for a forward pass")
    max_queue_s: float = Field(1.0, gt=0, description="seconds that the queue may take at the speed of the moment")
    max_batch_tokens: int | None = Field(
        None, ge=1, description="padded tokens of a forward pass; default: 256 on a CPU, 4096 on a GPU"
    )
    max_requests: int = Field(1024, ge=1, description="requests in work at the same time")
    max_connections: int = Field(1024, ge=1, description="connections of a worker; open files may allow fewer")
    keep_alive_s: float = Field(75.0, gt=0, description="seconds that a connection may be idle between two requests")
    admin_port: int | None = Field(
        None, ge=1, le=65535, description="port of probes and metrics alone, at all addresses; default: none"
    )
    grpc_address: str | None = Field(
        None,
        pattern=r"^((\[[0-9A-Fa-f:.]+\]|[\w.-]+):)?[0-9]{1,5}$",
        description="[HOST:]PORT of gRPC, on 127.0.0.1 unless HOST is given; default: no gRPC",
    )
    timeout_s: float = Field(10.0, gt=0, description="seconds until a request is given up")
    drain_delay_s: float = Field(2.0, ge=0, description="seconds of answering 503 before it stops listening")
    auto_truncate: bool = Field(True, description="cut texts that are too long, unless a request says otherwise")
    api_key_env: str | None = Field(None, description="environment variable that holds the bearer token")
    allow_failed: bool = Field(False, description="also serve an artifact that failed its contract")
    reload_s: float = Field(1.0, ge=0, description="seconds between looks for a changed artifact; 0: never")

    @field_validator("grpc_address")
    @classmethod
    def _whole(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, _, port = value.rpartition(":")
        if not 1 <= int(port) <= _LAST_PORT:
            raise ValueError(f"the port is not between 1 and {_LAST_PORT}")
        return f"{host or '127.0.0.1'}:{port}"

    @property
    def api_key(self) -> str | None:
        """The bearer token that requests must bring, or None.

        Raises:
            InputError: the variable that was named holds nothing, or a key that no header can bring.
        """
        if self.api_key_env is None:
            return None
        token = os.environ.get(self.api_key_env, "")
        if not token:
            raise InputError(
                "the variable that should hold the API key is empty",
                given=self.api_key_env,
                remedy=f"set {self.api_key_env}, or leave out --api-key-env",
            )
        if token != token.strip() or not token.isprintable():  # an HTTP header could not hold it
            raise InputError(
                "the API key holds a line break, or begins or ends with a space",
                given=f"the variable {self.api_key_env}",
                remedy="write it without a line break: `printf %s`, not `echo`",
            )
        return token

    def environment(self) -> dict[str, str]:
        """The settings as environment variables, for worker processes."""
        values = self.model_dump(exclude_none=True)
        return {PREFIX + name.upper(): str(value) for name, value in values.items()}


def resolve(
    flags: Mapping[str, object] = MappingProxyType({}), environment: Mapping[str, str] = os.environ
) -> ServeSettings:
    """Resolve the settings: a flag that is not None wins over a variable `KDC_*`, which wins over the default.

    Raises:
        InputError: lists all wrong values.
    """
    values: dict[str, object] = {
        name: environment[PREFIX + name.upper()]
        for name in ServeSettings.model_fields
        if environment.get(PREFIX + name.upper(), "") != ""
    }
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        return ServeSettings.model_validate(values)
    except ValidationError as error:
        problems = [f"{PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
        raise InputError(
            "wrong setting: " + "; ".join(problems), remedy="`kdc serve --help` lists them with their defaults"
        ) from None


def check_grpc(settings: ServeSettings) -> None:
    """See that what gRPC needs is installed, where it is asked for.

    Raises:
        InputError: it is not.
    """
    if settings.grpc_address is not None and not all(map(importlib.util.find_spec, _GRPC)):
        raise InputError(
            "gRPC is asked for, but what it needs is not installed",
            given=f"KDC_GRPC_ADDRESS={settings.grpc_address}",
            remedy=f"{installing('grpc')}, or unset the variable",
        )


def trace_exporters(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names of OpenTelemetry's exporters that are asked for: none without the variables, or where they switch it off.

    Reads the standard variables OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_PROTOCOL and _ENDPOINT (or
    OTEL_EXPORTER_OTLP_TRACES_...). OpenTelemetry reads the others, such as OTEL_SERVICE_NAME and
    OTEL_TRACES_SAMPLER; it is imported only where an exporter is asked for.

    Raises:
        InputError: an unknown exporter, protocol or address, or an exporter whose package is missing.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    asked = (name.strip().lower() for name in environment.get("OTEL_TRACES_EXPORTER", "").split(","))
    names = tuple(dict.fromkeys(name for name in asked if name not in ("", "none")))
    for name in names:
        if name not in _MODULES:
            raise InputError(
                "traces have no such exporter",
                given=f"OTEL_TRACES_EXPORTER={name}",
                remedy="set it to otlp, console or none",
            )
        try:
            importlib.import_module(_MODULES[name])
        except ModuleNotFoundError:
            raise InputError(
                "traces are asked for, but their exporter is not installed",
                given=f"OTEL_TRACES_EXPORTER={name}",
                remedy=f"{installing('otel')}, or unset the variable",
            ) from None
    if "otlp" in names:
        _check_otlp(environment)
    return names


def _check_otlp(environment: Mapping[str, str]) -> None:
    """Refuse a wrong protocol or address. The exporter would only log it, with every batch of spans that it loses."""
    variable, protocol = _first(environment, "PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        raise InputError(
            "traces cannot be sent by this protocol",
            given=f"{variable}={protocol}",
            remedy="set it to http/protobuf; collectors take that on port 4318",
        )
    variable, endpoint = _first(environment, "ENDPOINT")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise InputError(
            "the collector's address is not a URL",
            given=f"{variable}={endpoint}",
            remedy=f"write {variable}=http://HOST:4318" + ("/v1/traces" if "TRACES" in variable else ""),
        )


def _first(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable that counts, and its value: the one for traces wins over the one for all signals."""
    variables = (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}")
    return next(((each, environment[each].strip()) for each in variables if environment.get(each)), (variables[1], ""))

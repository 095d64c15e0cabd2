"""Whether OpenTelemetry traces are asked for, and whether they can be sent. Imports nothing of OpenTelemetry itself.

Reads the standard variables OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_PROTOCOL and _ENDPOINT (or
OTEL_EXPORTER_OTLP_TRACES_...). OpenTelemetry reads the others, such as OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kdc.common.errors import InputError

if TYPE_CHECKING:
    from kdc.serving.http.tracing import Tracing

# Each exporter and the module that it needs. The module of "console" comes with BentoML.
_MODULES = {
    "otlp": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "console": "opentelemetry.sdk.trace.export",
}
_PROTOCOL = "http/protobuf"


def exporters(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names of the exporters that are asked for; none without the variables, or where they switch traces off.

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
        if not _is_there(_MODULES[name]):
            raise InputError(
                "traces are asked for, but their exporter is not installed",
                given=f"OTEL_TRACES_EXPORTER={name}",
                remedy="`pip install 'kdc[otel]'` (in a checkout: `pip install '.[otel]'`), or unset the variable",
            )
    if "otlp" in names:
        _check_otlp(environment)
    return names


def start(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Begin tracing, if it is asked for.

    Raises:
        InputError: as `exporters`.
    """
    if not (names := exporters(environment)):
        return None
    from kdc.serving.http.tracing import Tracing

    return Tracing(names)


def _is_there(module: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):  # raised where the package around the module is missing
        return find_spec(module) is not None
    return False


def _check_otlp(environment: Mapping[str, str]) -> None:
    """Refuse a wrong protocol or address. The exporter would only log it, with every batch of spans that it loses."""
    variable, protocol = _first(environment, "PROTOCOL")
    if protocol not in ("", _PROTOCOL):
        raise InputError(
            "traces cannot be sent by this protocol",
            given=f"{variable}={protocol}",
            remedy=f"set it to {_PROTOCOL}; collectors take that on port 4318",
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

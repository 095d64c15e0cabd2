"""The service's settings: where they come from, what is refused, and that the manual lists them."""

import re

import pytest
import typer
from live import ROOT
from pydantic.fields import FieldInfo

from kdc.cli import app
from kdc.common.errors import InputError
from kdc.serving.http.settings import ServeSettings, resolve

MANUAL = ROOT / "docs" / "reference" / "service-settings.md"


def default_of(field: FieldInfo) -> str:
    if field.default in (None, ""):
        return ""
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()


def range_of(field: FieldInfo) -> str:
    bounds: dict[str, object] = {}
    for each in field.metadata:
        bounds |= {kind: getattr(each, kind) for kind in ("ge", "gt", "le") if hasattr(each, kind)}
    if "le" in bounds:
        return f"{bounds['ge']} to {bounds['le']}"
    if "ge" in bounds:
        return f"at least {bounds['ge']}"
    return f"more than {bounds['gt']}" if "gt" in bounds else ""


def test_the_manual_lists_every_setting_with_its_flag_default_and_range() -> None:
    rows = re.findall(
        r"^\| `KDC_(\w+)` \| (.*?) ?\| (.*?) ?\| (.*?) ?\| (.+) \|$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE
    )
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    flags = {option.name: f"`{option.opts[0]}`" for option in command.params if option.opts[0].startswith("--")}
    assert {name.lower(): row for name, *row in rows} == {
        name: [
            flags.get(name) or flags.get(name.removesuffix("_s"), ""),
            default_of(field),
            range_of(field),
            field.description,
        ]
        for name, field in ServeSettings.model_fields.items()
    }


def test_a_flag_comes_before_a_variable_before_the_default() -> None:
    settings = resolve({"max_texts": 7, "workers": None}, {"KDC_MAX_TEXTS": "8", "KDC_WORKERS": "2"})
    assert (settings.max_texts, settings.workers, settings.max_queue_tokens) == (7, 2, 65_536)


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        resolve({}, {"KDC_TIMEOUT_S": "-1", "KDC_DEVICE": "abacus", "KDC_THREADS": "many"})
    for name in ("KDC_TIMEOUT_S", "KDC_DEVICE", "KDC_THREADS"):
        assert name in str(caught.value)


def test_workers_get_the_same_settings_through_their_environment() -> None:
    settings = resolve({"artifact": "a=b", "drain_delay_s": 0.5, "auto_truncate": False, "variant": "int8"}, {})
    assert resolve({}, settings.environment()) == settings

"""The service's settings: where they come from, what is refused, and that the manual lists them."""

import re

import pytest
from live import ROOT

from kdc.common.errors import InputError
from kdc.serving.http.settings import ServeSettings, resolve

MANUAL = ROOT / "docs" / "serving.md"


def test_the_manual_lists_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `KDC_(\w+)` \| (.*?) ?\| (.+) \|$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name.lower(): (default.strip(), meaning) for name, default, meaning in rows}
    assert listed == {
        name: (
            ""
            if field.default in (None, "")
            else f"{field.default:g}"
            if isinstance(field.default, float)
            else str(field.default).lower(),
            field.description,
        )
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

"""The description at `/docs.json` is true: generated requests meet no 5xx, no undocumented status or body."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from bag_models import PAIR, TYPED, write_artifact
from hypothesis import HealthCheck, Phase, settings
from live import ROOT, running
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kdc.serving.http.api.app import make_app
from kdc.serving.http.api.routes import OPERATIONS, describe
from kdc.serving.http.replies import EMPTY, ERRORS
from kdc.serving.http.settings import ServeSettings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SCHEMA = schemathesis.openapi.from_dict(describe())


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("artifacts")
    single, pair = write_artifact(folder / "single"), write_artifact(folder / "pair", PAIR, TYPED)
    with running(f"1={single}", max_texts=8, max_text_chars=500) as one, running(f"1={pair}") as two:
        yield [one, two]


def generating(examples: int) -> settings:
    """Always the same requests, so many for each route."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@SCHEMA.parametrize()
@generating(12)
def test_generated_requests_meet_what_is_described(case: Any, urls: list[str]) -> None:
    for url in urls:
        case.call_and_validate(base_url=url, checks=CHECKS, allow_redirects=False)


@pytest.mark.slow
@SCHEMA.parametrize()
@generating(100)
def test_many_generated_requests_meet_what_is_described(case: Any, urls: list[str]) -> None:
    for url in urls:
        case.call_and_validate(base_url=url, checks=CHECKS, allow_redirects=False)


def test_every_route_is_described() -> None:
    app = make_app(ServeSettings(artifact="any"))
    served = {
        (route.path, method.lower())  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
        if route.path != "/docs/{asset}"  # type: ignore[attr-defined]
    }
    described = {
        (path, method) for path, item in describe()["paths"].items() for method in item if method in ("get", "post")
    }
    assert described == served


def test_the_page_works_without_another_host(urls: list[str]) -> None:
    page = httpx2.get(f"{urls[0]}/docs")
    assert page.status_code == 200
    assert "http" not in page.text.replace("<!doctype html>", "")
    for name, least in (("swagger-ui-bundle.js", 10**6), ("swagger-ui.css", 10**5), ("start.js", 10)):
        reply = httpx2.get(f"{urls[0]}/docs/{name}")
        assert reply.status_code == 200
        assert len(reply.content) >= least
    assert httpx2.get(f"{urls[0]}/docs/../service.py").status_code == 404
    assert httpx2.get(f"{urls[0]}/docs.json").json() == describe()


def test_the_manual_lists_every_error() -> None:
    page = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted([*((str(status), kind) for status, (kind, _) in ERRORS.items()), ("400", EMPTY)])


def test_the_manual_names_every_route() -> None:
    page = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8").replace("`...", "`/v2/models/NAME")
    named = {re.sub(r"\{(\w+)\}", lambda part: part[1].upper(), operation.path) for operation in OPERATIONS}
    assert named - set(re.findall(r"`(?:GET |POST )?(/[^`]*)`", page)) == set()

"""The alerts and the dashboard: they ask for what a running service tells, and promtool agrees with the rules."""

import json
import re
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml
from bag_models import SINGLE, write_artifact
from live import free_port, running
from manifests import DEPLOY
from prometheus_client.parser import text_string_to_metric_families

from kdc.artifact.decision import Abstention
from kdc.artifact.folder import load_manifest, write_manifest

RULES = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "kdc.json").read_text(encoding="utf-8"))
# What Prometheus itself adds to a series from Kubernetes.
OF_TARGETS = {"namespace", "job", "pod", "instance"}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"\b(kdc[a-z0-9_:]*)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Rule:
    """A rule of alerts.yaml."""

    name: str
    expr: str
    is_alert: bool


def rules() -> list[Rule]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [
        Rule(rule.get("record") or rule["alert"], rule["expr"], "alert" in rule)
        for group in document["groups"]
        for rule in group["rules"]
    ]


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """Sample name -> labels of each of its series, after answers, a refusal, a failure and bad requests, in front of an
    upstream that is not there."""
    folder = write_artifact(tmp_path_factory.mktemp("artifact"))
    defers = Abstention(threshold=0.9, aim="disagreement<=0.02", shares=(0.3, 0.3, 0.3))
    task = SINGLE.model_copy(update={"abstain": defers})
    places = f"plain={folder},deferring={write_artifact(tmp_path_factory.mktemp('deferring'), task)}"
    upstream = {"upstream": f"http://127.0.0.1:{free_port()}", "state_dir": str(tmp_path_factory.mktemp("state"))}
    manifest = load_manifest(folder)
    lineage = manifest.lineage.model_copy(update={"label_share": (0.5, 0.2, 0.3)})
    write_manifest(folder, manifest.model_copy(update={"lineage": lineage}))
    with running(places, max_requests=1, answers="deferring", **upstream) as url, pytest.MonkeyPatch.context() as patch:
        statuses = [ask(url, "w1 " * 50), ask(url, ["a", "b"]), httpx2.post(f"{url}/predict", content="{").status_code]
        question = {"type": "choice", "criteria": dict.fromkeys(SINGLE.labels)}
        body = {"state": "w1", "questions": {"q": question}}
        statuses.append(httpx2.post(f"{url}/v1/systemone", json=body).status_code)
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=10) as held:
            held.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
            asked = threading.Event()
            # A body that is silent gives its place to others.
            slow = threading.Thread(target=lambda: [held.send(b" ") for _ in iter(lambda: asked.wait(0.002), True)])
            slow.start()
            statuses.append(next(status for status in iter(lambda: ask(url, "w1"), 0) if status != 200))
            asked.set()
            slow.join()
        patch.setattr("kdc.serving.engine.passes.pad", lambda encodings, info: {})
        statuses.append(next(status for status in iter(lambda: ask(url, "w1"), 0) if status != 429))
        assert statuses == [200, 422, 400, 502, 429, 424]
        text = httpx2.get(f"{url}/metrics").text
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def ask(url: str, inputs: str | list[str]) -> int:
    return httpx2.post(f"{url}/predict", json={"inputs": inputs}, timeout=30).status_code


def selectors(query: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Each metric that a query names, with its matchers: label, operator, value."""
    return [(name, _MATCHER.findall(inside)) for name, inside in _SELECTOR.findall(query)]


def fits(labels: dict[str, str], matchers: list[tuple[str, str, str]]) -> bool:
    for label, sign, value in matchers:
        if label in OF_TARGETS or value.startswith("$"):
            continue
        same = re.fullmatch(value, labels.get(label, "")) is not None if "~" in sign else labels.get(label, "") == value
        if same == (sign[0] == "!"):
            return False
    return True


@pytest.mark.parametrize("query", [*dashboard_queries(), *(rule.expr for rule in rules())])
def test_a_running_service_tells_what_is_asked_for(query: str, series: dict[str, list[dict[str, str]]]) -> None:
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    asked = selectors(query)
    assert asked
    known = set(OF_TARGETS)
    for name, matchers in asked:
        if name in recorded:
            known |= {label for rule in rules() if rule.name == name for label in grouped(rule.expr)}
            continue
        assert name in series, f"no metric {name}"
        known |= {label for labels in series[name] for label in labels}
        assert [labels for labels in series[name] if fits(labels, matchers)], f"no series of {name} fits {matchers}"
    used = grouped(query) | {label for _, matchers in asked for label, _, _ in matchers}
    assert used <= known


def grouped(query: str) -> set[str]:
    """Labels by which a query groups and joins."""
    bare = _QUOTED.sub('""', query)
    return {label.strip() for inside in _GROUPING.findall(bare) for label in inside.split(",") if label.strip()}


def test_the_check_finds_a_metric_and_a_value_that_are_not_there(series: dict[str, list[dict[str, str]]]) -> None:
    assert selectors('rate(kdc_nothing_total{status=~"5..",route!="/a"}[5m])') == [
        ("kdc_nothing_total", [("status", "=~", "5.."), ("route", "!=", "/a")])
    ]
    assert not [labels for labels in series["kdc_requests_total"] if fits(labels, [("status", "=", "418")])]
    assert grouped('sum by (model, le) (x{a="by (b)"})') == {"model", "le"}


def test_what_counts_requests_counts_every_route_that_answers_for_a_model() -> None:
    """Catches a route that a dashboard or an alert does not see."""
    listed = json.loads((DEPLOY.parent / "tests" / "interface" / "routes.json").read_text(encoding="utf-8"))
    answering = [route.removeprefix("POST ") for route in listed if route.startswith("POST ")]
    assert len(answering) >= 5
    queries = [*dashboard_queries(), *(rule.expr for rule in rules())]
    patterns = [
        matcher for query in queries for _, each in selectors(query) for matcher in each if matcher[0] == "route"
    ]
    assert patterns
    for label, how, pattern in patterns:
        assert [route for route in answering if not fits({label: route}, [(label, how, pattern)])] == []


def test_labels_of_the_training_mix_are_those_of_the_predictions(series: dict[str, list[dict[str, str]]]) -> None:
    told, counted = (
        [sorted(each.items()) for each in series[name]]
        for name in ("kdc_training_label_share", "kdc_predictions_total")
    )
    assert sorted(told) == sorted(counted)


def test_every_alert_has_a_section_for_who_is_woken() -> None:
    text = (DEPLOY.parent / "docs" / "how-to" / "monitor.md").read_text(encoding="utf-8")
    assert [rule.name for rule in rules() if rule.is_alert and f"`{rule.name}`" not in text] == []


def test_panels_are_explained_and_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"  # whatever Prometheus is called there
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: apt install promtool, or Prometheus' own archive")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES)


def test_the_alerts_do_what_their_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", RULES.with_name("alerts_test.yaml"))


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    document = yaml.safe_load(RULES.with_name("alerts_test.yaml").read_text(encoding="utf-8"))
    cases = [case for test in document["tests"] for case in test.get("alert_rule_test", [])]
    for rule in rules():
        if rule.is_alert:
            assert {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule.name} == {True, False}


def test_promtool_can_read_the_dashboards_queries(tmp_path: Path) -> None:
    queries = [query.replace("$__rate_interval", "5m") for query in dashboard_queries()]
    group = {"name": "dashboard", "rules": [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries)]}
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [group]}), encoding="utf-8")
    assert "SUCCESS" in promtool("check", "rules", file)

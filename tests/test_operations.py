"""docs/operations.md: every alert has a heading, its commands parse, its figures stand where it says they do."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import typer
import yaml
from bag_models import write_artifact
from live import ROOT, free_port, running
from manifests import DEPLOY, one, pod_of, render

from kdc.cli import app

PAGE = ROOT / "docs" / "operations.md"
TEXT = PAGE.read_text(encoding="utf-8")
HEADINGS = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def blocks(language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [block for marked, block in fenced if marked == language]


def commands() -> list[list[str]]:
    """Arguments of every `kdc` in the page: in blocks, and those in running text that say more than a name."""
    calls = []
    for line in "\n".join(blocks()).splitlines() + re.findall(r"`(kdc [^`]+)`", TEXT):
        for part in re.split(r"\s[|]\s|\s&&\s|<\(|\)", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["kdc"]:
                calls.append(words[1:])
            elif "--entrypoint" in words and words[words.index("--entrypoint") + 1] == "kdc":
                calls.append(words[next(n for n, word in enumerate(words) if word.startswith("kdc:")) + 1 :])
    return calls


def slug(heading: str) -> str:
    """The anchor that GitHub gives it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_a_command_parses(arguments: list[str]) -> None:
    name, *rest = arguments
    group = typer.main.get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    if rest:  # a bare name in running text
        command.make_context(name, rest)


def test_the_check_finds_a_wrong_option() -> None:
    assert len(commands()) > 10
    assert ["verify", "/artifact", "--max-latency-ms", "5"] in commands()
    command = typer.main.get_command(app).commands["pull"]  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="No such option"):
        command.make_context("pull", ["a", "b", "--expect"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_has_its_heading(alert: dict[str, dict[str, str]]) -> None:
    name = str(alert["alert"])
    assert name in HEADINGS
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{slug(name)}"


def test_no_heading_is_of_an_alert_that_is_gone() -> None:
    assert [name for name in HEADINGS if name.startswith("Kdc")] == [alert["alert"] for alert in ALERTS]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (PAGE.parent / path).resolve() if path else PAGE
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_figures_stand_where_it_says() -> None:
    rows = re.findall(r"^\| .+ \| `(.+)` \| \[[\w.]+\]\((\w+\.md)#", TEXT, re.MULTILINE)
    assert len(rows) >= 7
    for figure, file in rows:
        there = " ".join((PAGE.parent / file).read_text(encoding="utf-8").split())
        assert " ".join(figure.split()) in there, f"{figure} is not in {file}"


def test_promtool_can_read_the_queries(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: apt install promtool, or Prometheus' own archive")
    queries = "".join(blocks("promql")).splitlines()
    assert len(queries) >= 8
    rules = [{"record": f"q{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "operations", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run([program, "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_queries_ask_for_what_is_told_or_recorded() -> None:
    known = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "serving" / "http" / "metrics.py", DEPLOY / "prometheus" / "alerts.yaml")
    )
    for name in re.findall(r"\bkdc[_:][a-z0-9_:]+", "".join(blocks("promql"))):
        assert re.sub(r"_(total|sum|count|bucket)$", "", name) in known, name


def test_the_kustomization_renders(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("yaml") if block.startswith("# large/kustomization.yaml")]
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(block, encoding="utf-8")
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    objects = render(folder)
    autoscaler, deployment = one(objects, "HorizontalPodAutoscaler")["spec"], one(objects, "Deployment")["spec"]
    cores, queue = autoscaler["metrics"]
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (117, 234)
    assert cores["resource"]["target"]["averageUtilization"] == 60
    assert queue["pods"]["target"]["averageValue"] == "512"
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": "10%", "maxUnavailable": 0}
    assert {"name": "KDC_MAX_QUEUE_S", "value": "0.05"} in pod_of(objects)["containers"][0]["env"]


def test_nginx_sends_a_caller_to_one_of_two_names(tmp_path: Path) -> None:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("needs nginx: apt install nginx-light")
    stable, canary = write_artifact(tmp_path / "one"), write_artifact(tmp_path / "two")
    (block,) = blocks("nginx")
    with running(f"stable={stable},canary={canary}") as url:
        port = free_port()
        block = block.replace("kdc.kdc.svc:80", url.removeprefix("http://")).replace("listen 8080", f"listen {port}")
        file = tmp_path / "nginx.conf"
        file.write_text(
            f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
            f"http {{ access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;\n"
            f"fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;\n{block}}}\n",
            encoding="utf-8",
        )
        with (tmp_path / "log").open("wb") as log:
            nginx = subprocess.Popen([program, "-c", str(file), "-p", str(tmp_path)], stderr=log)
        try:
            asked = [infer(port, f"caller-{number}") for number in range(100)]
            assert asked == [infer(port, f"caller-{number}") for number in range(100)]
        finally:
            nginx.terminate()
            nginx.wait(10)
    assert set(asked) == {"stable", "canary"}
    assert asked.count("canary") < 20


def infer(port: int, caller: str) -> str:
    """The model that a caller's request is answered by."""
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["w1"]}]}
    deadline = time.monotonic() + 10
    while True:
        try:
            reply = httpx.post(
                f"http://127.0.0.1:{port}/v2/models/qnli/infer", json=body, headers={"X-Caller": caller}, timeout=10
            )
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            continue
        assert reply.status_code == 200, reply.text
        return str(reply.json()["model_name"])

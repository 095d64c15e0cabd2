"""The pages on running a service: every alert has a heading, commands parse, links and figures lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
import typer
import yaml
from bag_models import write_artifact
from live import ROOT, free_port, running
from manifests import DEPLOY, one, pod_of, render

from kdc.cli import app

DOCS = ROOT / "docs"
ALERTS_PAGE, SIZE_PAGE, FIGURES_PAGE = (
    DOCS / name for name in ("how-to/alerts.md", "how-to/size-a-service.md", "benchmarks/capacity.md")
)
PAGES = [
    ALERTS_PAGE,
    SIZE_PAGE,
    FIGURES_PAGE,
    DOCS / "benchmarks" / "serving.md",
    *(DOCS / "how-to" / f"{name}.md" for name in ("deploy-docker", "deploy-kserve", "deploy-kubernetes")),
    *(DOCS / "how-to" / f"{name}.md" for name in ("roll-out", "other-runtimes")),
    *(DOCS / "reference" / f"{name}.md" for name in ("artifact", "support")),
]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def blocks(language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [block for marked, block in fenced if marked == language]


def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def commands() -> list[list[str]]:
    """Arguments of every `kdc` in the pages: in blocks, and those in running text that say more than a name."""
    calls = []
    for line in "\n".join(blocks()).splitlines() + re.findall(r"`(kdc [^`]+)`", TEXT):
        for part in re.split(r"\s[|]\s|\s&&\s|<\(|\)", line):
            if not part.lstrip().startswith("kdc ") and "--entrypoint kdc " not in part:
                continue  # a line of JSON may have half of its quotes
            words = shlex.split(part, comments=True)
            if words[:1] == ["kdc"]:
                calls.append(words[1:])
            else:
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
    assert len(commands()) > 30
    assert ["verify", "/artifact", "--max-latency-ms", "5"] in commands()
    command = typer.main.get_command(app).commands["pull"]  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="No such option"):
        command.make_context("pull", ["a", "b", "--expect"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_has_its_heading(alert: dict[str, dict[str, str]]) -> None:
    name = str(alert["alert"])
    assert name in headings(ALERTS_PAGE)
    assert alert["annotations"]["runbook"] == f"docs/how-to/alerts.md#{slug(name)}"


def test_no_heading_is_of_an_alert_that_is_gone() -> None:
    assert [name for name in headings(ALERTS_PAGE) if name.startswith("Kdc")] == [alert["alert"] for alert in ALERTS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in map(slug, headings(file)), target


def test_figures_are_the_measured_ones() -> None:
    """The arithmetic of a size begins with figures that were measured."""
    row = re.compile(r"^\| .+? \| `(.+?)`(.*?) \|", re.MULTILINE)
    used = row.findall(SIZE_PAGE.read_text(encoding="utf-8").partition("## 2.")[0])
    assert len(used) >= 3
    assert set(used) <= set(row.findall(FIGURES_PAGE.read_text(encoding="utf-8").partition("## What follows")[0]))


def test_promtool_can_read_the_queries(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: apt install promtool, or Prometheus' own archive")
    queries = "".join(blocks("promql")).splitlines()
    assert len(queries) >= 8
    rules = [{"record": f"q{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "pages", "rules": rules}]}), encoding="utf-8")
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
            reply = httpx2.post(
                f"http://127.0.0.1:{port}/v2/models/qnli/infer", json=body, headers={"X-Caller": caller}, timeout=10
            )
        except httpx2.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            continue
        assert reply.status_code == 200, reply.text
        return str(reply.json()["model_name"])

"""`make audit`: pip-audit looks at every install, and passes over what docs/vulnerabilities.md names, and nothing else.

A server here stands in for osv.dev: it knows the page's vulnerabilities, and one more that a test gives it.
"""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from live import ROOT

ENVIRONMENTS = (".venv-audit/bin/pip-audit", ".venv-optimum/.installed-test")
pytestmark = [
    pytest.mark.audit,
    pytest.mark.skipif(
        not all((ROOT / name).exists() for name in ENVIRONMENTS), reason="pip-audit or Optimum: `make test-audit`"
    ),
]
ROW = re.compile(r"^\| (PYSEC-\S+) \| (CVE-\S+) \| (\S+), (\S+)", re.MULTILINE)


class Advisories(ThreadingHTTPServer):
    """Answers as osv.dev does; `known` has the advisories by package, `asked` the (package, version) of all queries."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Query)
        self.known: dict[str, list[tuple[str, str]]] = {}
        self.asked: set[tuple[str, str]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/query"


class _Query(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        from packaging.version import InvalidVersion, Version

        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, version = query["package"]["name"], query["version"]
        server: Any = self.server
        server.asked.add((name, version))
        found = []
        for identity, mended in server.known.get(name, []):
            try:
                affected = Version(version) < Version(mended)
            except InvalidVersion:  # no version has it mended
                affected = True
            if affected:
                place = {"package": {"name": name, "ecosystem": "PyPI"}}
                found.append({"id": identity, "summary": "of the page", "affected": [place]})
        body = json.dumps({"vulns": found} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is told."""


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    server = Advisories()
    for identity, _, package, mended in ROW.findall((ROOT / "docs" / "vulnerabilities.md").read_text()):
        server.known.setdefault(package, []).append((identity, mended))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def audit(install: str, advisories: Advisories, *more: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", f"audit-{install}", f"OSV={advisories.url}", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("install", "of_it"),
    [
        ("serving", {"bentoml", "onnxruntime", "starlette"}),
        ("compress", {"torch", "transformers", "peft", "bentoml"}),
        ("optimum", {"optimum-onnx", "torch", "bentoml"}),
    ],
)
def test_an_audit_passes_over_what_the_page_names_and_nothing_else(
    install: str, of_it: set[str], advisories: Advisories
) -> None:
    done = audit(install, advisories)
    assert done.returncode == 0, done.stdout + done.stderr
    assert of_it <= {name for name, _ in advisories.asked}
    advisories.known.setdefault("bentoml", []).append(("PYSEC-2099-1", "99"))
    done = audit(install, advisories)
    assert done.returncode != 0
    assert re.search(r"^bentoml +\S+ +PYSEC-2099-1", done.stdout, re.MULTILINE), done.stdout


def test_the_page_names_nothing_that_is_mended(advisories: Advisories) -> None:
    """What no installed version has any more goes from the page: passed over, it would hide that it came back."""
    named = {identity for at in advisories.known.values() for identity, _ in at}
    assert set(re.findall(r"PYSEC-\S+", audit("optimum", advisories, "NAMED=").stdout)) == named

"""`make audit`: pip-audit looks at every install, and ignores what docs/reference/vulnerabilities.md names, no more.

A server here stands in for osv.dev: it knows the page's vulnerabilities, and one more that a test gives it.
"""

import json
import re
import subprocess
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from live import ROOT
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ENVIRONMENTS = (".venv-audit/bin/pip-audit", ".venv-optimum/.installed-test")
pytestmark = [
    pytest.mark.audit,
    pytest.mark.skipif(
        not all((ROOT / name).exists() for name in ENVIRONMENTS), reason="pip-audit or Optimum: `make test-audit`"
    ),
]
# ID, install, package, and the version that mends it, or the last one known to have it.
ROW = re.compile(r"^\| (PYSEC-\S+) \| (compress|optimum) \| CVE-\S+ \| (\S+), (after )?(\S+) \|", re.MULTILINE)
PAGE = (ROOT / "docs" / "reference" / "vulnerabilities.md").read_text(encoding="utf-8")


class Advisories(ThreadingHTTPServer):
    """Answers as osv.dev does. `known` has by package the IDs of advisories with the versions that have them, `asked`
    the (package, version) of all queries."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Query)
        self.known: dict[str, list[tuple[str, SpecifierSet]]] = {}
        self.asked: set[tuple[str, str]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/query"


class _Query(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, version = query["package"]["name"], query["version"]
        server: Any = self.server
        server.asked.add((name, version))
        found = []
        for identity, affected in server.known.get(name, []):
            if affected.contains(version, prereleases=True):
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
    for identity, _, package, last, version in ROW.findall(PAGE):
        affected = SpecifierSet(">0" if last else f"<{version}")
        server.known.setdefault(package, []).append((identity, affected))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def audit(install: str, advisories: Advisories, *more: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", f"audit-{install}", f"OSV={advisories.url}", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def findings(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The IDs in pip-audit's table: a line has name, version, ID."""
    return set(re.findall(r"^[a-z-]+ +\S+ +(PYSEC-\S+)", done.stdout, re.MULTILINE))


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
    advisories.known.setdefault("bentoml", []).append(("PYSEC-2099-1", SpecifierSet(">0")))
    done = audit(install, advisories)
    assert done.returncode != 0
    assert findings(done) == {"PYSEC-2099-1"}, done.stdout


@pytest.mark.parametrize(("install", "names"), [("compress", {"compress"}), ("optimum", {"compress", "optimum"})])
def test_the_page_names_for_an_install_what_that_has(install: str, names: set[str], advisories: Advisories) -> None:
    """A name that no longer applies would hide that the vulnerability came back. A release that is newer than the page
    only warns: it must not fail a change that has nothing to do with it."""
    named = {identity for identity, of, *_ in ROW.findall(PAGE) if of in names}
    assert findings(audit(install, advisories, "NAMED=")) == named
    installed = dict(advisories.asked)
    for identity, _, package, last, version in ROW.findall(PAGE):
        if last and package in installed and Version(installed[package]) > Version(version):
            warnings.warn(f"does {package} {installed[package]} still have {identity}? See the page", stacklevel=1)
    advisories.known["transformers"] = [(identity, SpecifierSet(">0")) for identity, *_ in ROW.findall(PAGE)]
    assert findings(audit(install, advisories)) == {identity for identity, *_ in ROW.findall(PAGE)} - named

"""Fixtures that several files share: one finished run, made once; and a browser."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import tiny_runs
from filelock import FileLock

from kdc.common.files import write_whole
from kdc.pipeline.config.settings import Config
from kdc.pipeline.rundir.record import CompressResult

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No sandbox: tests run as root in containers. The rest keeps the browser from calling home.
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Properties, not seconds: a busy machine draws and runs examples slowly.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")
ALL_MODELS = {"run.controls": True, "export.teacher": True}  # settings under which a run makes every model that it can


@dataclass(frozen=True)
class Finished:
    """A run that went through, its inputs, and what it returned."""

    folder: Path
    teacher: Path
    config: Config
    result: CompressResult

    @property
    def artifact(self) -> Path:
        return self.folder / "run" / "artifact"

    @property
    def table(self) -> dict[str, dict[str, Any]]:
        """The evaluation: model -> column -> value."""
        return self.result.metrics


@pytest.fixture(scope="session")
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tiny BERT, distilled into one layer, on pairs. Not to be changed: copy it first."""
    # The first of the processes that share the tests makes it, and the others wait for it.
    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if hasattr(request.config, "workerinput") else mine
    file = shared / "finished.pickle"
    with FileLock(shared / "finished.lock"):
        if not file.exists():
            write_whole(file, pickle.dumps(_finish(Path(tempfile.mkdtemp(prefix="finished-", dir=shared)))))
        return pickle.loads(file.read_bytes())


def _finish(folder: Path) -> Finished:
    teacher = tiny_runs.base_model("bert", folder / "teacher")
    tiny_runs.write_rows(folder / "train.csv", 700, seed=1)
    tiny_runs.write_rows(folder / "eval.csv", 90, seed=2)
    config = tiny_runs.config_for(folder, teacher, flags=ALL_MODELS)
    return Finished(folder, teacher, config, tiny_runs.compress(config))


@pytest.fixture
def among_foreign_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder whose files are named like libraries, and cannot be imported."""
    folder = tmp_path / "among_foreign_modules"
    folder.mkdir()
    for name in ("numpy", "pydantic"):
        (folder / f"{name}.py").write_text(f"raise ImportError('this is not the library {name}')\n", encoding="utf-8")
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")  # while it is open, its event loop runs in this thread
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'kdc[browser]'")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=SWITCHES)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page of a fresh profile, in which no script may fail."""
    context = browser.new_context()
    context.set_default_timeout(10_000)
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    context.close()
    assert not failures

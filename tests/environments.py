"""Virtual environments that see the libraries of this one but not its `kdc`, which they get by pip, or not at all."""

import contextlib
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
from live import free_port

Argument = str | Path


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip.

    Attributes:
        folder: what `python -m venv` made.
    """

    folder: Path

    def run(self, *command: Argument, cwd: Path, **variables: str) -> str:
        """What a program of the environment printed; it has to succeed."""
        done = subprocess.run(
            self._command(*command),
            cwd=cwd,
            env=self._variables(variables),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def serving(self, *command: Argument, cwd: Path, **variables: str) -> Iterator[str]:
        """The address of a server while it runs; `--port` is added to its command."""
        port, log = free_port(), cwd / "server.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self._command(*command, "--port", str(port)),
                cwd=cwd,
                env=self._variables(variables),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 60
            while not _is_ready(f"http://127.0.0.1:{port}"):
                assert process.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)

    def pip(self, *arguments: Argument) -> None:
        """Run pip for this environment."""
        command = [sys.executable, "-m", "pip", "--python", self.folder / "bin" / "python", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *what: Argument) -> None:
        """Install wheels or folders, without what they depend on: nothing is fetched."""
        self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", *what)

    def _command(self, program: Argument, *arguments: Argument) -> list[str]:
        return [str(self.folder / "bin" / program), *map(str, arguments)]

    def _variables(self, more: dict[str, str]) -> dict[str, str]:
        """Few of this process's own: a PYTHONPATH, say, could hide what an installation lacks."""
        plain = {"PATH": f"{self.folder}/bin:/usr/bin:/bin", "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        return plain | {"HF_HUB_OFFLINE": "1", "BENTOML_DO_NOT_TRACK": "true"} | more


class Maker:
    """Makes environments below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libraries = folder / "libraries"
        self._libraries.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            # Files `.pth` stay behind too: one of them is what makes an editable `kdc` importable.
            if not path.name.startswith(("kdc", "__editable__")) and path.suffix != ".pth":
                (self._libraries / path.name).symlink_to(path)

    def make(self, name: str, *install: Argument) -> Environment:
        """An environment that shares this one's libraries, with what is to be installed in it."""
        venv.create(self._folder / name, symlinks=True)
        environment = Environment(self._folder / name)
        (packages,) = environment.folder.glob("lib/python*/site-packages")
        (packages / "libraries.pth").write_text(f"{self._libraries}\n", encoding="utf-8")
        if install:
            environment.install(*install)
        return environment


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/health", timeout=2).status_code == 200
    return False

"""The run directory: where it is, that nobody else works in it, and that what lies there is a run's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.request import task_of

_CONFIG = "config.json"
_STAGE_FILES = ("stage.json", "fingerprint")  # one of them is in every stage's folder
_ENDINGS = ("", ".partial", ".old", ".kept")  # of a stage's folders
_RESULTS = (_CONFIG, "commands.json", "artifact", "artifacts", "rejected", "report.html", "report.json", "report.md")


def root_of(config: Config) -> Path:
    """The directory that a run works in."""
    if config.run.out is not None:
        return config.run.out
    return Path("runs") / task_of(config).name


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One run a directory.

    Raises:
        InputError: the directory cannot be made, or another run works in it.
    """
    from filelock import FileLock, Timeout

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "run.lock", timeout=0):
            yield
    except Timeout:
        raise InputError(
            "another run works in this directory", given=root, remedy="wait for it, or name another --out"
        ) from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        if Path(error.filename or "") not in (root, *root.parents, root / "run.lock"):
            raise
        raise InputError(
            f"cannot work in this directory ({error.strerror})", given=root, remedy="name another --out"
        ) from None


def claim(root: Path, config: Config, stages: Iterable[str]) -> None:
    """Write the run's settings into its directory, which makes it one.

    Stages replace the folders of their names, and `data` or `export` may well be somebody's own: a directory that is
    not a run's yet must hold none.

    Raises:
        InputError: it does.
    """
    folders = [root / f"{stage}{ending}" for stage in stages for ending in _ENDINGS]
    if not _is_run(root, folders):
        theirs = [path for path in folders if not _is_stage(path)]
        theirs += [root / name for name in _RESULTS if os.path.lexists(root / name)]
        if theirs:
            raise InputError(
                "a run would replace what lies in its directory, and what no run made",
                given=theirs[0],
                remedy="name another --out",
            )
    temporary = root / f".{_CONFIG}.tmp"
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(config.model_dump_json(indent=2))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, root / _CONFIG)


def _is_run(root: Path, folders: Iterable[Path]) -> bool:
    """Whether the settings of a run lie there, of whatever version; or damaged ones, beside what a run made."""
    try:
        found = json.loads((root / _CONFIG).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return any((folder / _STAGE_FILES[0]).exists() for folder in folders)
    return isinstance(found, dict) and {"run", "teacher", "student"} <= found.keys()


def _is_stage(path: Path) -> bool:
    """Whether nothing is lost by replacing it: a stage's folder, which may have been copied from another run."""
    if not os.path.lexists(path):
        return True
    if not path.is_dir():
        return False
    names = [found.name for found in path.iterdir()]
    if path.suffix == ".kept":
        return all(name.endswith((".json", ".tmp")) for name in names)
    return not names or any(name in _STAGE_FILES for name in names)

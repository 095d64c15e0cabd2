"""The run directory: where it is, that nobody else works in it, that a run replaces nothing but a run's files, and the
commands that made it, so that its report can name them."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdc.common.errors import InputError
from kdc.common.files import write_whole
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import task_of
from kdc.pipeline.rundir.looks import LOOKS

_CONFIG = "config.json"
_COMMANDS = "commands.json"
_STAGE_FILES = ("stage.json", "fingerprint")  # one of them is in every stage's folder
_ENDINGS = ("", ".partial", ".old", ".kept")  # endings of the names of a stage's folders
FRONTIER = "frontier"  # folder with the run directories of a frontier's further points
_PAGES = tuple(f"{page}.{ending}" for page in ("report", FRONTIER) for ending in ("html", "json", "md"))
_RESULTS = (_CONFIG, _COMMANDS, LOOKS, "artifact", "artifacts", "rejected", FRONTIER, *_PAGES)


def root_of(config: Config) -> Path:
    """The directory that a run works in."""
    if config.run.out is not None:
        return config.run.out
    return Path("runs") / task_of(config.data).name


@contextmanager
def locked(root: Path, *, again: bool = False) -> Iterator[None]:
    """Make the directory, and let no other run work in it while the block lasts. With `again` a thread that has locked
    it so may lock it so once more, for a part of its work.

    Raises:
        InputError: the directory cannot be made, or another run works in it.
    """
    from filelock import FileLock, Timeout

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "run.lock", timeout=0, is_singleton=again):
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


def claim(root: Path, settings: str, stages: Iterable[str]) -> None:
    """Write the run's settings, as JSON, into its directory, which makes it a run directory.

    Stages replace the folders of their names, and a folder `data` or `export` may well be somebody's own. So a
    directory that is not a run's yet must hold no folder of a name in `stages`, unless a stage made it.

    Raises:
        InputError: it holds something that a run would replace and that no run made.
    """
    folders = [root / f"{stage}{ending}" for stage in stages for ending in _ENDINGS]
    if not _is_run(root, folders):
        foreign = [path for path in folders if not _is_replaceable(path)]
        foreign += [root / name for name in _RESULTS if os.path.lexists(root / name)]
        if foreign:
            raise InputError(
                "a run would replace what lies in its directory, and what no run made",
                given=foreign[0],
                remedy="name another --out",
            )
    write_whole(root / _CONFIG, settings)


def note_command(root: Path, command: str) -> None:
    """Add a command to a run directory, which exists; does nothing where it was the last one too."""
    commands = read_commands(root)
    if commands[-1:] != [command]:
        write_whole(root / _COMMANDS, json.dumps([*commands, command], indent=2))


def read_commands(root: Path) -> list[str]:
    """The commands so far, the oldest first; none where nobody noted any (a run from Python)."""
    file = root / _COMMANDS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def _is_run(root: Path, folders: Iterable[Path]) -> bool:
    """Whether the directory is a run's: it holds settings of a run, or damaged settings beside a finished stage."""
    try:
        settings = json.loads((root / _CONFIG).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return any((folder / _STAGE_FILES[0]).exists() for folder in folders)
    return isinstance(settings, dict) and {"run", "teacher", "student"} <= settings.keys()


def _is_replaceable(path: Path) -> bool:
    """Whether nothing of a person's is lost by replacing the path: it is not there, or it is a stage's folder, which
    may have been copied from another run."""
    if not os.path.lexists(path):
        return True
    if not path.is_dir():
        return False
    names = [file.name for file in path.iterdir()]
    if path.suffix == ".kept":
        return all(name.endswith((".json", ".tmp")) for name in names)
    return not names or any(name in _STAGE_FILES for name in names)

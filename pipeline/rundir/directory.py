"""The run directory: lock, settings, commands, and count of looks at the evaluation rows.

A run replaces only files that a run made.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from kdc.common.errors import InputError, KdcError
from kdc.common.files import write_whole
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import task_of

_CONFIG, _COMMANDS, LOOKS = "config.json", "commands.json", "looks.json"
_STAGE_FILES = ("stage.json", "fingerprint")
_ENDINGS = ("", ".partial", ".old", ".kept")
FRONTIER = "frontier"  # a frontier's other run directories
_PAGES = tuple(f"{page}.{ending}" for page in ("report", FRONTIER) for ending in ("html", "json", "md"))
_RESULTS = (_CONFIG, _COMMANDS, LOOKS, "artifact", "artifacts", "rejected", FRONTIER, *_PAGES)


def root_of(config: Config) -> Path:
    if config.run.out is not None:
        return config.run.out
    return Path("runs") / task_of(config.data).name


@contextmanager
def locked(root: Path, *, again: bool = False) -> Iterator[None]:
    """Lock, also `again` in the same thread.

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
    """Write the settings (JSON).

    Raises:
        InputError: stages would replace folders that no run made.
    """
    folders = [root / f"{stage}{ending}" for stage in stages for ending in _ENDINGS]
    if not _is_run(root, folders):
        foreign = [path for path in folders if not _is_replaceable(path)]
        foreign += [root / name for name in _RESULTS if os.path.lexists(root / name)]
        if foreign:
            raise InputError(
                "the directory holds files that no run made; a run would replace them",
                given=foreign[0],
                remedy="name another --out",
            )
    write_whole(root / _CONFIG, settings)


def note_command(root: Path, command: str) -> None:
    commands = read_commands(root)
    if commands[-1:] != [command]:
        write_whole(root / _COMMANDS, json.dumps([*commands, command], indent=2))


def read_commands(root: Path) -> list[str]:
    """Oldest first; none from Python."""
    file = root / _COMMANDS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def look_at(root: Path, rows: bytes, answers: NDArray[np.generic]) -> int:
    """The number, from 1, of a look: a judgement by the evaluation rows. The same answers are the same look.

    Args:
        rows: fingerprint with labels.
        answers: all that is judged, including decisions.

    Raises:
        KdcError: the count is damaged.
    """
    file = root / LOOKS
    try:
        looks = TypeAdapter(dict[str, list[str]]).validate_json(file.read_bytes()) if file.exists() else {}
    except ValueError:
        raise KdcError(
            "the count of judged models is damaged",
            given=file,
            remedy="restore it, or name another --out",
        ) from None
    judged = looks.setdefault(rows.hex()[:16], [])
    fingerprint = hashlib.sha256(np.ascontiguousarray(answers).tobytes()).hexdigest()[:16]
    if fingerprint not in judged:
        judged.append(fingerprint)
        write_whole(file, json.dumps(looks, indent=2))
    return judged.index(fingerprint) + 1


def _is_run(root: Path, folders: Iterable[Path]) -> bool:
    try:
        settings = json.loads((root / _CONFIG).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return any((folder / _STAGE_FILES[0]).exists() for folder in folders)
    return isinstance(settings, dict) and {"run", "teacher", "student"} <= settings.keys()


def _is_replaceable(path: Path) -> bool:
    if not os.path.lexists(path):
        return True
    if not path.is_dir():
        return False
    names = [file.name for file in path.iterdir()]
    if path.suffix == ".kept":
        return all(name.endswith((".json", ".tmp")) for name in names)
    return not names or any(name in _STAGE_FILES for name in names)

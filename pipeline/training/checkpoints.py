"""Checkpoints that count: sealed when they are written whole, checked before training goes on from them.

The Trainer writes a checkpoint file by file, and takes a torn one for a good one. Here the seal is written last; it
holds the SHA-256 of every file, so that a torn or damaged checkpoint is dropped and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger("kdc")

SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Flush every file of a checkpoint to the disk, then write the seal."""
    for file in _files(checkpoint):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    temporary = checkpoint / f"{SEAL}.tmp"
    temporary.write_text(json.dumps(_hashes(checkpoint)), encoding="utf-8")
    os.replace(temporary, checkpoint / SEAL)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` whose seal holds; torn and damaged ones are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        problem = _problem(checkpoint)
        if not problem:
            return checkpoint
        log.warning("dropped %s: %s", checkpoint.name, problem)
        shutil.rmtree(checkpoint)
    return None


def _problem(checkpoint: Path) -> str:
    """Why a checkpoint does not count; "" where it does."""
    try:
        expected = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it was not written to its end"
    except ValueError:
        return "its seal is damaged"
    return "" if expected == _hashes(checkpoint) else "its files were changed"


def _hashes(checkpoint: Path) -> dict[str, str]:
    hashes = {}
    for file in _files(checkpoint):
        with file.open("rb") as stream:
            hashes[str(file.relative_to(checkpoint))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _files(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and not file.name.startswith(SEAL))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])

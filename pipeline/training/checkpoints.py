"""Sealed checkpoints: a seal with every file's SHA-256 is written last, since the Trainer would resume from an
incomplete checkpoint."""

import json
import logging
import os
import shutil
from pathlib import Path

from kdc.common.files import sha256_of, write_whole

log = logging.getLogger("kdc")

SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Sync all files, then write the seal."""
    for file in _files(checkpoint):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    write_whole(checkpoint / SEAL, json.dumps(_hashes(checkpoint)))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint; deletes newer ones."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            if json.loads((checkpoint / SEAL).read_text(encoding="utf-8")) == _hashes(checkpoint):
                return checkpoint
            problem = "its files were changed"
        except FileNotFoundError:
            problem = "it is incomplete"
        except ValueError:
            problem = "its seal is damaged"
        log.warning("dropped %s: %s", checkpoint.name, problem)
        shutil.rmtree(checkpoint)
    return None


def _hashes(checkpoint: Path) -> dict[str, str]:
    return {str(file.relative_to(checkpoint)): sha256_of(file) for file in _files(checkpoint)}


def _files(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and not file.name.startswith(SEAL))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])

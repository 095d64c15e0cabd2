"""Seals complete checkpoints: the Trainer would also resume from incomplete ones."""

import logging
import os
import shutil
from pathlib import Path

from kdc.common.files import write_whole

log = logging.getLogger("kdc")

SEAL = "complete"


def seal(checkpoint: Path) -> None:
    for file in checkpoint.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    write_whole(checkpoint / SEAL, "")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest sealed checkpoint; deletes newer ones."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if (checkpoint / SEAL).exists():
            return checkpoint
        log.warning("dropped %s: it is incomplete", checkpoint.name)
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])

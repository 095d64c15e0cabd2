"""The commands that made a run, in its `commands.json`, so that its report can name them."""

from __future__ import annotations

import json
import os
from pathlib import Path

_NAME = "commands.json"


def note_command(root: Path, command: str) -> None:
    """Add a command to a run directory, which exists; nothing where it was the last one too."""
    commands = read_commands(root)
    if commands[-1:] != [command]:
        temporary = root / f"{_NAME}.tmp"
        temporary.write_text(json.dumps([*commands, command], indent=2), encoding="utf-8")
        os.replace(temporary, root / _NAME)


def read_commands(root: Path) -> list[str]:
    """The commands so far, the oldest first; none where nothing was noted (a run from Python)."""
    file = root / _NAME
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

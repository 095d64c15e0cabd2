"""The commands that made a run, in its `commands.json`, so that its report can name them."""

import json
from pathlib import Path

from kdc.common.files import write_whole

_NAME = "commands.json"


def note_command(root: Path, command: str) -> None:
    """Add a command to a run directory, which exists; does nothing where it was the last one too."""
    commands = read_commands(root)
    if commands[-1:] != [command]:
        write_whole(root / _NAME, json.dumps([*commands, command], indent=2))


def read_commands(root: Path) -> list[str]:
    """The commands so far, the oldest first; none where nobody noted any (a run from Python)."""
    file = root / _NAME
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

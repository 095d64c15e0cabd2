"""Tells the person who watches how many bytes went: a bar on a terminal, nothing elsewhere. On stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console


class Meter:
    """Bytes of one transfer. Use it as a context: it takes the bar away at the end."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Any = None
        self._task: Any = None

    @property
    def is_shown(self) -> bool:
        """Whether somebody watches."""
        return self._console.is_terminal

    def start(self, what: str, total: int) -> None:
        """Begin, with the bytes that there are in all."""
        if not self.is_shown:
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        self.stop()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), Speed())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task(what, total=total)
        self._bar.start()

    def advance(self, count: int) -> None:
        """So many bytes more are there; fewer than none where some have to be sent again."""
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

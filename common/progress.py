"""Tells the person who watches how far the run is: a bar on a terminal, one line a stage elsewhere. All on stderr."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter:
    """Stages, rows and time left.

    Args:
        quiet: say nothing but warnings.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("  [bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._task: Any = None
        handler = RichHandler(console=self.console, show_time=False, show_path=False, show_level=False)
        logging.getLogger("kdc").handlers = [handler]
        logging.getLogger("kdc").setLevel(logging.INFO)

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(line, markup=False)

    def started(self, stage: str, why: str) -> None:
        """A stage begins."""
        self.say(f"{stage}: starts ({why})")
        self._bar.start()
        self._task = self._bar.add_task(stage, total=None)

    def progress(self, done: int, total: int) -> None:
        """Work of the current stage."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def finished(self, stage: str, seconds: float, metrics: dict[str, Any]) -> None:
        """A stage is done."""
        self.stop()
        self.say(f"{stage}: done in {seconds:.1f} s{_headline(metrics)}")

    def skipped(self, stage: str) -> None:
        """A stage was done before."""
        self.say(f"{stage}: already done, nothing changed")

    def stop(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._bar.stop()


def _headline(metrics: dict[str, Any]) -> str:
    line = metrics.get("headline")
    if line:
        return f": {line}"
    scores = metrics.get("tune")
    return ": tuning slice " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items()) if scores else ""

"""Progress for the person who watches: a bar on a terminal, at most plain lines elsewhere. Everything goes to stderr.

`Reporter` shows the stages of a run, `Meter` the bytes of a transfer, `RowCounter` the rows of a prediction.
"""

import logging
from types import TracebackType
from typing import Any, Self


class _Bar:
    """One bar on stderr, drawn only on a terminal. As a context it takes the bar away at the end.

    Args:
        quiet: print nothing at all.
        draws: whether the bar is drawn, as far as somebody watches; lines are printed in any case.

    Attributes:
        is_shown: whether the bar is drawn, which needs stderr to be a terminal.
    """

    def __init__(self, *, quiet: bool = False, draws: bool = True) -> None:
        from rich.console import Console  # here, so that importing this module costs nothing

        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.is_shown = self.console.is_terminal and draws and not quiet
        self._progress: Any = None
        self._task: Any = None

    def say(self, line: str) -> None:
        """Print one line, on a terminal or not."""
        self.console.print(line, markup=False)

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _draw(self, columns: list[Any], title: str, total: float | None, **fields: Any) -> None:
        """Begin a new bar of rich's columns."""
        from rich.progress import Progress

        self.stop()
        if self.is_shown:
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._task = self._progress.add_task(title, total=total, **fields)
            self._progress.start()

    def _update(self, **values: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, **values)


class Reporter(_Bar):
    """The stages of a run: a line when one begins and ends, and a bar within it. Also shows kdc's log messages."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.logging import RichHandler

        super().__init__(quiet=quiet)
        handler = RichHandler(console=self.console, show_time=False, show_path=False, show_level=False)
        logging.getLogger("kdc").handlers = [handler]
        logging.getLogger("kdc").setLevel(logging.INFO)

    def started(self, stage: str, why: str) -> None:
        """Say that a stage begins, and why it has to be done."""
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

        self.say(f"{stage}: starts ({why})")
        bar = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn()]
        self._draw(["  [bold]{task.description}", *bar], stage, None)

    def progress(self, done: int, total: int) -> None:
        """Move the bar of the current stage to `done` of `total` steps."""
        self._update(completed=done, total=total)

    def finished(self, stage: str, seconds: float, headline: str) -> None:
        """Say that a stage is done, and in one line what came of it, if `headline` says anything."""
        self.stop()
        self.say(f"{stage}: done in {seconds:.1f} s" + (f": {headline}" if headline else ""))

    def skipped(self, stage: str) -> None:
        """Say that a stage was done before."""
        self.say(f"{stage}: already done, nothing changed")


class Meter(_Bar):
    """The bytes of one transfer."""

    def start(self, title: str, total: int) -> None:
        """Begin a bar of `total` bytes."""
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        bar = [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        self._draw([TextColumn("{task.description}", markup=False), *bar], title, total)

    def advance(self, count: int) -> None:
        """Move the bar by so many bytes; back where `count` is negative, since some have to be sent again."""
        if self._progress is not None:
            self._progress.advance(self._task, count)


class RowCounter(_Bar):
    """The rows of a prediction, and how far its input has been read."""

    def start(self, total: int | None) -> None:
        """Begin a bar of `total` bytes of input; None where that is not known."""
        from rich.progress import BarColumn, TimeRemainingColumn

        figures = ["  {task.fields[rows]:,} rows", "{task.fields[speed]:,.0f} rows/s"]
        self._draw([*figures, BarColumn(), "left", TimeRemainingColumn()], "rows", total, rows=0, speed=0.0)

    def update(self, done: int, rows: int, rows_per_second: float) -> None:
        """Move the bar to `done` bytes of input, and show the rows that were read and the speed."""
        self._update(completed=done, rows=rows, speed=rows_per_second)

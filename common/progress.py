"""Progress for the person who watches: a bar on a terminal, at most plain lines elsewhere. Everything goes to stderr.

`Reporter` shows the stages of a run, `Meter` the bytes of a transfer, `RowCounter` the rows of a prediction.
"""

import logging
import threading
from types import TracebackType
from typing import Any, Protocol, Self

from kdc.common.errors import printable

_BEAT_S = 30.0  # seconds between two lines of a stage without a bar
_SPEED_S = 120.0  # the speed is the mean of so many seconds


class Progress(Protocol):
    """Whom long work tells how far it is."""

    def __call__(self, done: int, total: int, /, *, rows: int = 0, loss: float | None = None) -> None:
        """`done` of `total` steps are done, each of so many rows; the loss is a training's."""


class _Bar:
    """One bar on stderr, drawn only on a terminal. As a context it takes the bar away at the end.

    Args:
        quiet: print nothing at all.
        draws: whether the bar is drawn on a terminal; lines are printed in any case.
    """

    def __init__(self, *, quiet: bool = False, draws: bool = True) -> None:
        from rich.console import Console  # here: importing this module costs nothing

        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._is_drawn = self.console.is_terminal and draws and not quiet
        self._progress: Any = None
        self._task: Any = None

    def say(self, line: str) -> None:
        """Print one line, on a terminal or not."""
        self.console.print(printable(line), markup=False)

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
        """Begin a new bar of rich's columns. Without a terminal it only counts."""
        from rich.progress import Progress

        self.stop()
        self._progress = Progress(
            *columns, console=self.console, transient=True, disable=not self._is_drawn, speed_estimate_period=_SPEED_S
        )
        self._progress.add_task(title, total=total, **fields)
        self._task = self._progress.tasks[0]
        self._progress.start()

    def _update(self, **values: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task.id, **values)


class Reporter(_Bar):
    """The stages of a run: a line when one begins and ends, and in between a bar, or without a terminal a line now and
    then. Also shows kdc's log messages.

    Args:
        quiet: print nothing at all.
        beat_s: seconds between two of those lines.
    """

    def __init__(self, *, quiet: bool = False, beat_s: float = _BEAT_S) -> None:
        from rich.logging import RichHandler

        super().__init__(quiet=quiet)
        self._beat_s = beat_s
        self._ended = threading.Event()
        handler = RichHandler(console=self.console, show_time=False, show_path=False, show_level=False)
        logging.getLogger("kdc").handlers = [handler]
        logging.getLogger("kdc").setLevel(logging.INFO)

    def started(self, stage: str, why: str) -> None:
        """Say that a stage begins, and why it has to be done."""
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

        self.say(f"{stage}: starts ({why})")
        bar = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn()]
        self._draw(["  [bold]{task.description}", *bar], stage, None, rows=0, loss=None)
        if not self._is_drawn and not self.console.quiet:
            self._ended = threading.Event()
            threading.Thread(
                target=self._beat, args=[self._task, self._ended], name="kdc-progress", daemon=True
            ).start()

    def progress(self, done: int, total: int, /, *, rows: int = 0, loss: float | None = None) -> None:
        """Move the current stage to `done` of `total` steps; see `Progress`. A loss that is not told stays until
        another piece of work begins."""
        fields: dict[str, Any] = {"rows": rows}
        if loss is not None or (self._task is not None and done < self._task.completed):
            fields["loss"] = loss
        self._update(completed=done, total=total, **fields)

    def stop(self) -> None:
        """Take the bar away, and end the lines of the stage."""
        super().stop()
        self._ended.set()

    def finished(self, stage: str, seconds: float, headline: str) -> None:
        """Say that a stage is done, and in one line what came of it, if `headline` says anything."""
        self.stop()
        self.say(f"{stage}: done in {seconds:.1f} s" + (f": {headline}" if headline else ""))

    def skipped(self, stage: str) -> None:
        """Say that a stage was done before."""
        self.say(f"{stage}: already done, nothing changed")

    def _beat(self, task: Any, ended: threading.Event) -> None:
        """Print every few seconds where a stage is, also while it tells nothing itself."""
        while not ended.wait(self._beat_s):
            self.say(_line(task))


def _line(task: Any) -> str:
    """A stage and its seconds; step of steps, rows a second, loss and time left as far as they are known."""
    parts = [f"{task.description}: {task.elapsed:.0f} s"]
    if task.total is not None:
        parts.append(f"step {task.completed} of {task.total}")
    if speed := task.speed:  # read once: another thread may reset it
        rows, loss = task.fields["rows"], task.fields["loss"]
        parts += [f"{speed * rows:.0f} rows/s"] if rows else []
        parts += [f"loss {loss:.3f}"] if loss is not None else []
        parts.append(f"about {_duration(task.remaining / speed)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Meter(_Bar):
    """The bytes of one transfer."""

    def start(self, title: str, total: int) -> None:
        """Begin a bar of `total` bytes."""
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        bar = [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        self._draw([TextColumn("{task.description}", markup=False), *bar], title, total)

    def advance(self, count: int) -> None:
        """Move the bar by so many bytes; back where `count` is negative, since some have to be sent again."""
        self._update(advance=count)


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

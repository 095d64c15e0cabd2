"""Progress for the person who watches: a bar on a terminal, at most plain lines elsewhere. Everything goes to stderr.

`Reporter` shows the stages of a run, `Meter` the bytes of a transfer, `RowCounter` the rows of a prediction.
"""

import logging
import threading
import time
from types import TracebackType
from typing import Any, Protocol, Self

from kdc.common.errors import printable

_BEAT_S = 30.0  # seconds between two lines of a stage whose bar nobody sees


class Progress(Protocol):
    """Whom long work tells how far it is."""

    def __call__(self, done: int, total: int, /, *, rows: int = 0, loss: float | None = None) -> None:
        """`done` of `total` steps are done, each of so many rows; the loss is a training's."""


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
    """The stages of a run: a line when one begins and ends, and in between a bar, or without a terminal a line now and
    then. Also shows kdc's log messages.

    Args:
        quiet: print nothing at all.
        beat_s: seconds between two of those lines.
    """

    def __init__(self, *, quiet: bool = False, beat_s: float = _BEAT_S) -> None:
        from rich.logging import RichHandler

        super().__init__(quiet=quiet)
        self._beat_s = 0.0 if quiet or self.is_shown else beat_s
        self._heart: _Heart | None = None
        handler = RichHandler(console=self.console, show_time=False, show_path=False, show_level=False)
        logging.getLogger("kdc").handlers = [handler]
        logging.getLogger("kdc").setLevel(logging.INFO)

    def started(self, stage: str, why: str) -> None:
        """Say that a stage begins, and why it has to be done."""
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

        self.say(f"{stage}: starts ({why})")
        bar = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn()]
        self._draw(["  [bold]{task.description}", *bar], stage, None)
        if self._beat_s:
            self._heart = _Heart(self, stage, self._beat_s)

    def progress(self, done: int, total: int, /, *, rows: int = 0, loss: float | None = None) -> None:
        """Move the current stage to `done` of `total` steps; see `Progress`."""
        self._update(completed=done, total=total)
        if self._heart is not None:
            self._heart.note(done, total, rows, loss)

    def stop(self) -> None:
        """Take the bar away, and end the lines of the stage."""
        super().stop()
        if self._heart is not None:
            self._heart.stop()
            self._heart = None

    def finished(self, stage: str, seconds: float, headline: str) -> None:
        """Say that a stage is done, and in one line what came of it, if `headline` says anything."""
        self.stop()
        self.say(f"{stage}: done in {seconds:.1f} s" + (f": {headline}" if headline else ""))

    def skipped(self, stage: str) -> None:
        """Say that a stage was done before."""
        self.say(f"{stage}: already done, nothing changed")


class _Heart:
    """Prints where a stage is every few seconds, also while it tells nothing itself."""

    def __init__(self, reporter: Reporter, stage: str, beat_s: float) -> None:
        self._reporter, self._stage, self._beat_s = reporter, stage, beat_s
        self._began = time.monotonic()
        self._state: tuple[float, int, int, int, float | None] | None = None  # when, done, total, rows, loss
        self._last: tuple[float, int] | None = None  # when, done: what the last line was of
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="kdc-progress", daemon=True).start()

    def note(self, done: int, total: int, rows: int, loss: float | None) -> None:
        """Where the stage is now. A loss that is not told stays."""
        now, old = time.monotonic(), self._state
        if old is None or done < old[1]:  # another piece of work of the same stage
            self._last, old = (now, done), None
        self._state = (now, done, total, rows, loss if loss is not None or old is None else old[4])

    def stop(self) -> None:
        """Print no more."""
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            self._reporter.say(self._line())

    def _line(self) -> str:
        """The stage and its seconds; step of steps, rows a second, loss and time left as far as they are known."""
        parts = [f"{self._stage}: {time.monotonic() - self._began:.0f} s"]
        state, last = self._state, self._last
        if state is not None and last is not None:
            when, done, total, rows, loss = state
            parts.append(f"step {done} of {total}")
            if done > last[1]:
                rate = (done - last[1]) / (when - last[0])
                parts += [f"{rate * rows:.0f} rows/s"] if rows else []
                parts += [f"loss {loss:.3f}"] if loss is not None else []
                parts.append(f"about {_duration((total - done) / rate)} left")
                self._last = when, done
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

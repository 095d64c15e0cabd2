"""Progress on stderr: a bar on a terminal, else a few lines."""

import logging
import threading
from datetime import timedelta
from typing import Any, Protocol, Self

from kdc.common.errors import printable

_BEAT_S = 30.0  # between lines without a bar
_SPEED_S = 120.0  # of the averaged speed


class Progress(Protocol):
    def __call__(self, done: int, total: int, /, *, rows: int = 0, loss: float | None = None) -> None:
        """Take `done` of `total` steps, each of `rows` rows."""


class _Bar:
    """A bar on a terminal; `draws=False` prints lines only."""

    def __init__(self, *, quiet: bool = False, draws: bool = True) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._is_drawn = self.console.is_terminal and draws and not quiet
        self._progress: Any = None
        self._task: Any = None

    def say(self, line: str) -> None:
        self.console.print(printable(line), markup=False)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _draw(self, columns: list[Any], title: str, total: float | None, **fields: Any) -> None:
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
    """Shows a run's stages and kdc's log."""

    def __init__(self, *, quiet: bool = False, beat_s: float = _BEAT_S) -> None:
        from rich.logging import RichHandler

        super().__init__(quiet=quiet)
        self._beat_s = beat_s
        self._ended = threading.Event()
        handler = RichHandler(console=self.console, show_time=False, show_path=False, show_level=False)
        logging.getLogger("kdc").handlers = [handler]
        logging.getLogger("kdc").setLevel(logging.INFO)

    def started(self, stage: str, why: str) -> None:
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
        """The last loss stays until new work begins."""
        fields: dict[str, Any] = {"rows": rows}
        if loss is not None or (self._task is not None and done < self._task.completed):
            fields["loss"] = loss
        self._update(completed=done, total=total, **fields)

    def stop(self) -> None:
        super().stop()
        self._ended.set()

    def finished(self, stage: str, seconds: float, headline: str) -> None:
        self.stop()
        self.say(f"{stage}: done in {seconds:.1f} s" + (f": {headline}" if headline else ""))

    def skipped(self, stage: str) -> None:
        self.say(f"{stage}: already done, nothing changed")

    def _beat(self, task: Any, ended: threading.Event) -> None:
        while not ended.wait(self._beat_s):
            self.say(_line(task))


def _line(task: Any) -> str:
    parts = [f"{task.description}: {task.elapsed:.0f} s"]
    if task.total is not None:
        parts.append(f"step {task.completed} of {task.total}")
    if speed := task.speed:  # another thread may reset it
        rows, loss = task.fields["rows"], task.fields["loss"]
        parts += [f"{speed * rows:.0f} rows/s"] if rows else []
        parts += [f"loss {loss:.3f}"] if loss is not None else []
        parts.append(f"about {timedelta(seconds=round(task.remaining / speed))} left")
    return ", ".join(parts)


class Meter(_Bar):
    def start(self, title: str, total: int | None) -> None:
        """Begin a bar of `total` bytes; None: unknown."""
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        bar = [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        self._draw([TextColumn("{task.description}", markup=False), *bar], title, total)

    def advance(self, count: int) -> None:
        """Negative if bytes are sent again."""
        self._update(advance=count)

    def update(self, done: int, rows: int, rows_per_second: float, more: str = "") -> None:
        """`done` is in bytes."""
        self._update(completed=done, description=f"{rows:,} rows, {rows_per_second:,.0f} rows/s{more}")

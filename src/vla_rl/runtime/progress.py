"""What a long command says while it works: a bar with the time left, or plain lines in a pipe."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vla_rl.config.errors import in_lines

_console: Console | None = None
_stream: TextIO | None = None
_silent = False


class _Tolerant:
    """A stream whose writes may fail in silence: a terminal that is gone, or a full disk, must not end the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console() -> Console:
    """The console of bars and log lines: standard error, so that results can be piped."""
    global _console, _stream
    # a bar that is shown stands in for standard error meanwhile
    stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    if _console is None or _stream is not stream:
        _console, _stream = Console(file=cast("IO[str]", _Tolerant(stream))), stream
    return _console


def note(text: str) -> None:
    """Print a line for the user beside bars and log: as it is, whatever brackets or length it has."""
    if not _silent:
        console().print(in_lines(text), markup=False, highlight=False, soft_wrap=True)


def set_up_logging(level: int = logging.INFO) -> None:
    """Show the log on the console; called by the command line only (a library owns no root logger)."""
    if console().is_terminal:
        handler: logging.Handler = RichHandler(
            console=console(), show_path=False, show_time=False, markup=False, highlighter=None
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("vla_rl")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


def be_silent(prefix: str) -> None:
    """Show no progress from now on, and of the log warnings alone, behind `prefix`: another process speaks for all."""
    global _silent
    _silent = True
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prefix}%(levelname)s: %(message)s"))
    root = logging.getLogger("vla_rl")
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def progress(
    title: str, total: int | None = None, *, every: float = 5.0, start: int = 0
) -> Reporter:
    """A reporter for `total` units of work (None: unknown), of which `start` are done already.

        with progress("SFT", total=steps) as bar:
            for ...:
                bar.advance(1, loss=loss)

    In a terminal it is a bar with elapsed and remaining time; in a pipe a line at most every `every`
    seconds, and one at the end.
    """
    if _silent:
        return _Silent(title, total, start)
    bar = console().is_terminal
    return _Bar(title, total, start) if bar else _Lines(title, total, start, every)


def share_progress(title: str, start: float = 0.0, *, every: float = 5.0) -> Reporter:
    """A reporter for work of which the finished share, 0..1, is known: call `reach(share)`."""
    if _silent:
        return _Silent(title, 1, start, True)
    bar = console().is_terminal
    return _Bar(title, 1, start, True) if bar else _Lines(title, 1, start, every, True)


class Reporter:
    """Common to bar and lines: counts, and formats the values shown."""

    def __init__(self, title: str, total: int | None, start: float, is_share: bool = False) -> None:
        self.title = title
        self.total = total
        self.done = start
        self._start = start
        self._is_share = is_share
        self._values: dict[str, str] = {}

    def advance(self, count: int = 1, **values: float | str) -> None:
        """Add `count` finished units and show `values`, the newest of each name."""
        self.reach(self.done + count, **values)

    def reach(self, done: float, **values: float | str) -> None:
        """Set what is done, in the unit of the total, and show `values`."""
        self.done = done
        self._values |= {name: _format(value) for name, value in values.items()}
        self._show()

    def note(self, text: str) -> None:
        """Print a line of its own."""
        note(text)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish()

    def _shown_values(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self._values.items())

    def _show(self) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError


class _Silent(Reporter):
    def _show(self) -> None:
        pass

    def _finish(self) -> None:
        pass


class _Bar(Reporter):
    def __init__(self, title: str, total: int | None, start: float, is_share: bool = False) -> None:
        super().__init__(title, total, start, is_share)
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn() if is_share else MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            console=console(),
        )
        self._task = self._progress.add_task(title, total=total, values="")
        self._progress.update(self._task, completed=start)

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done, values=self._shown_values())

    def _finish(self) -> None:
        self._progress.stop()


class _Lines(Reporter):
    def __init__(
        self, title: str, total: int | None, start: float, every: float, is_share: bool = False
    ) -> None:
        super().__init__(title, total, start, is_share)
        self._every = every
        self._began = self._last = time.monotonic()
        self._printed = start

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._print(now)

    def _finish(self) -> None:
        if self.done > self._printed:
            self._print(time.monotonic())

    def _print(self, now: float) -> None:
        self._last, self._printed = now, self.done
        elapsed = now - self._began
        parts = [f"{self.title} {self.done}"]
        if self._is_share:
            parts = [f"{self.title} {self.done:.0%}"]
        elif self.total:
            parts = [f"{self.title} {self.done}/{self.total} ({self.done / self.total:.0%})"]
        parts.append(f"{_clock(elapsed)} elapsed")
        fresh = self.done - self._start
        if self.total and fresh > 0 and self.done < self.total:
            parts.append(f"{_clock(elapsed / fresh * (self.total - self.done))} left")
        if self._values:
            parts.append(self._shown_values())
        # one write, so that lines of several processes do not mix
        with suppress(OSError):
            sys.stderr.write("  ".join(parts) + "\n")
            sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _format(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else f"{float(value):.3g}"

"""How far a sort is: for the user who watches, and for the message if it fails."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

ProgressCallback = Callable[[int, int], object]


class SortProgress:
    """Bytes written by all threads, out of all there are to write. `poll` reports them, in the caller's thread."""

    def __init__(self, total_bytes: int, report: ProgressCallback | None) -> None:
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self.output_touched = False  # from here on the output is no longer what it was
        self._report = report
        self._reported = -1
        self._lock = threading.Lock()

    def note_write(self, *, is_output: bool) -> None:
        """Called before bytes are written."""
        if is_output:
            self.output_touched = True

    def note_bytes(self, count: int) -> None:
        """Called when `count` bytes have been written."""
        with self._lock:
            self.done_bytes += count

    def poll(self) -> None:
        if self._report is not None and self.done_bytes != self._reported:
            self._reported = self.done_bytes
            self._report(self.done_bytes, self.total_bytes)


@contextlib.contextmanager
def open_report(progress: bool | ProgressCallback | None, doing: str = "sorting") -> Iterator[ProgressCallback | None]:
    """Gives what to report to: the user's callable, a bar on stderr that says what it is `doing`, or None for quiet.

    None (the default) is a bar if stderr is a terminal and rich is installed; True, where that is not so, a plain line
    that counts.
    """
    if callable(progress):
        yield progress
        return
    is_terminal = sys.stderr.isatty()
    if progress is False or (progress is None and not is_terminal):
        yield None
        return
    try:
        if not is_terminal:
            raise ImportError
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        with _open_plain_bar(doing) if progress else contextlib.nullcontext() as report:
            yield report
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _open_plain_bar(doing: str) -> Iterator[ProgressCallback]:
    percent = -1

    def report(done: int, total: int) -> None:
        nonlocal percent
        if (now := 100 * done // max(1, total)) != percent:
            percent = now
            print(f"\r{doing} {percent} %", end="", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if percent >= 0:
            print(file=sys.stderr)

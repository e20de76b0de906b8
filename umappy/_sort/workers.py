"""Threads that work off tasks, each with a buffer of its own, and stop together.

The tasks are made in the calling thread, a little ahead of need, so that what the next one reads can be prefetched.
An error in a thread, in making the tasks, or Ctrl-C in the caller stops all; no thread outlives `run`.
"""

from __future__ import annotations

import contextlib
import mmap
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from umappy._sort.failure import absorb_echoes, release_frames

# How often the caller looks for errors and reports progress while the threads work.
POLL_SECONDS = 0.05

Task = TypeVar("Task")
Bytes = NDArray[np.uint8]


class StoppedError(Exception):
    """Another thread failed, or the caller was interrupted: end without a word."""


class Workers(Generic[Task]):
    """Runs `work(task, buffer)` in as many threads as there are buffers; `poll` is called in the caller's meanwhile.

    `work` calls `check` every few milliseconds of copying; it raises when all are to stop.
    """

    def __init__(self, buffers: Sequence[Bytes], poll: Callable[[], None]) -> None:
        self._buffers = buffers
        self._poll = poll
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._tasks: queue.Queue[Task | None] = queue.Queue(maxsize=1)

    def check(self) -> None:
        if self._stop.is_set():
            raise StoppedError

    def run(self, tasks: Iterable[Task], work: Callable[[Task, Bytes], None]) -> None:
        """Returns when all tasks are done, or raises the first error, when no thread runs any more."""
        threads = [
            threading.Thread(target=self._serve, args=(work, buffer), name=f"umappy-sort-{number}", daemon=True)
            for number, buffer in enumerate(self._buffers)
        ]
        try:
            for thread in threads:
                thread.start()
            for task in tasks:
                self._put(task)
            for _ in threads:
                self._put(None)
            while any(thread.is_alive() for thread in threads):
                self._wait(threads)
        except StoppedError:
            pass
        except BaseException:
            self._stop.set()
            raise
        finally:
            self._join(threads)
            failure = self._failures[0] if self._failures else None
            # An error refers to the frames it went through, and those at times to the error: a circle, buffers in it.
            for each in self._failures:
                release_frames(each)
            self._failures.clear()
        try:
            if failure is not None:
                raise failure
        finally:
            del failure

    def _put(self, task: Task | None) -> None:
        while True:
            self.check()
            try:
                return self._tasks.put(task, timeout=POLL_SECONDS)
            except queue.Full:
                self._poll()

    def _wait(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join(POLL_SECONDS)
        self._poll()

    def _join(self, threads: list[threading.Thread]) -> None:
        """The threads use memory the caller is about to unmap, so nothing may end this early.

        Ctrl-C and the pager's own errors come at any bytecode, between the lines of a handler too.
        """
        caught: BaseException | None = None
        try:
            while any(map(_is_running, threads)):
                try:
                    for thread in filter(_is_running, threads):
                        thread.join(POLL_SECONDS)
                except BaseException as error:
                    self._stop.set()
                    caught = error
            if caught is not None and not self._failures:
                raise caught
        finally:
            caught = None
            if any(map(_is_running, threads)):
                self._join(threads)

    def _serve(self, work: Callable[[Task, Bytes], None], buffer: Bytes) -> None:
        try:
            while True:
                self.check()
                with contextlib.suppress(queue.Empty):
                    task = self._tasks.get(timeout=POLL_SECONDS)
                    if task is None:
                        return
                    work(task, buffer)
        except StoppedError:
            if self._failures:
                absorb_echoes(self._failures[0])
        except BaseException as error:  # also what the pager raises in this thread: it goes to the caller
            self._failures.append(error)
            self._stop.set()
            absorb_echoes(error)


def _is_running(thread: threading.Thread) -> bool:
    return thread.ident is not None and thread.is_alive()


def make_buffer(size: int) -> Bytes:
    """Returns zeroed memory of its own, which goes back to the system the moment the array does."""
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size]

"""Pointers of the engine's that are not freed while in use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from umappy import errors

Pointer = TypeVar("Pointer")

WAIT_SECONDS_MAX = 60.0


class Handle(Generic[Pointer]):
    """A pointer of the engine's that stays valid inside `use()`: the bindings let go of the GIL, so another thread may
    be closing meanwhile.

    Who closes has it alone between `begin_close` and `end_close`; others wait for the outcome, since closing may fail.
    """

    def __init__(self, pointer: Pointer, name: str) -> None:
        self._pointer: Pointer | None = pointer
        self._name = name
        self._pid = os.getpid()
        self._users = 0
        self._closing = False
        self._changed = threading.Condition()

    @property
    def is_forked(self) -> bool:
        return self._pid != os.getpid()

    @property
    def is_closed(self) -> bool:
        return self._pointer is None

    @contextmanager
    def use(self, *, wait: bool = True) -> Iterator[Pointer]:
        """The pointer, for one call. ClosedError, without `wait` also while it is being closed; ForkedRegionError."""
        if self.is_forked:
            raise errors.make_forked_error()
        with self._changed:
            if wait:
                self._wait(lambda: not self._closing)
            if self._closing or self._pointer is None:
                raise errors.ClosedError(f"{self._name} is closed")
            pointer = self._pointer
            self._users += 1
        try:
            yield pointer
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def begin_close(self) -> Pointer | None:
        """Returns the pointer once nobody uses it, or None when it is closed; then nothing is to be ended."""
        with self._changed:
            self._wait(lambda: not self._closing)
            if self._pointer is None:
                return None
            self._closing = True
            try:
                self._wait(lambda: self._users == 0)
            except BaseException:
                self._end(closed=False)
                raise
            return self._pointer

    def end_close(self, *, closed: bool) -> None:
        with self._changed:
            self._end(closed=closed)

    def _end(self, *, closed: bool) -> None:
        self._closing = False
        if closed:
            self._pointer = None
        self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        if not self._changed.wait_for(condition, WAIT_SECONDS_MAX):
            raise BufferError(f"{self._name} was in use by another call for {WAIT_SECONDS_MAX:.0f} seconds")

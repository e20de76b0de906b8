"""Pointers of the engine's that are not freed while in use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from umappy import errors

Pointer = TypeVar("Pointer")


class Handle(Generic[Pointer]):
    """A pointer of the engine's that stays valid inside `use()`: the bindings let go of the GIL, so another thread may
    be closing meanwhile. `take()` waits until nobody uses it and leaves the handle closed.
    """

    def __init__(self, pointer: Pointer, name: str) -> None:
        self._pointer: Pointer | None = pointer
        self._name = name
        self._pid = os.getpid()
        self._users = 0
        self._changed = threading.Condition()

    @property
    def is_forked(self) -> bool:
        return self._pid != os.getpid()

    @property
    def is_closed(self) -> bool:
        return self._pointer is None

    @contextmanager
    def use(self) -> Iterator[Pointer]:
        if self.is_forked:
            raise errors.make_forked_error()
        with self._changed:
            if self._pointer is None:
                raise errors.ClosedError(f"{self._name} is closed")
            pointer = self._pointer
            self._users += 1
        try:
            yield pointer
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def take(self) -> Pointer | None:
        """Returns the pointer to the one caller who may free it; None when somebody did."""
        with self._changed:
            pointer, self._pointer = self._pointer, None
            while self._users:
                self._changed.wait()
            return pointer

    def put_back(self, pointer: Pointer) -> None:
        with self._changed:
            self._pointer = pointer

"""`NativeStore`: the Python face of a store of the engine, and who owns it when."""

from __future__ import annotations

import errno
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from umappy import errors
from umappy._engine import ffi, lib
from umappy.stores.base import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

    from umappy._engine import um_error, um_store

CLOSE_TIMEOUT_SECONDS = 60.0


def make_record_error(record: um_error) -> Exception:
    """Returns the exception for a failure that the engine wrote down."""
    text = ffi.string(record.text).decode("utf-8", "backslashreplace")
    return errors.make_store_error(record.code, text, offset=record.offset, length=record.length, op=record.op)


def make_open_error(record: um_error) -> Exception:
    """The same where a store was to be opened: arguments that do not fit what is there are a ValueError."""
    error = make_record_error(record)
    return ValueError(getattr(error, "store", "")) if record.code == errno.EINVAL else error


class NativeStore(Store):
    """A store of the engine.

    It is open until `close`, until a region maps it, or until a wrapper takes it; the latter two own it from then on
    and close it themselves, so that `close` has nothing left to do. Its calls release the GIL.
    """

    def __init__(self, handle: um_store) -> None:
        self._handle = handle
        self.size = lib.um_store_size(handle)
        self.writable = bool(lib.um_store_is_writable(handle))
        self._owned = False
        self._calls = 0
        self._changed = threading.Condition()
        self._process = os.getpid()

    @property
    def closed(self) -> bool:
        """Whether it was closed here. A store that is mapped or wrapped is its owner's to close."""
        return self._handle is None and not self._owned

    def read_into(self, offset: int, buffer: Buffer) -> int | None:
        """Fills `buffer` (contiguous, writable) with the bytes from `offset` on. StoreError when that fails."""
        with self._borrow() as handle, ffi.from_buffer("char[]", buffer, True) as memory:
            self._check_range(offset, len(memory))
            record = ffi.new("um_error *")
            if lib.um_store_read(handle, offset, memory, len(memory), record) < 0:
                raise make_record_error(record)
        return None

    def write(self, offset: int, buffer: Buffer) -> None:
        """Writes `buffer` (contiguous) at `offset`. StoreError when that fails, or when the store is read-only."""
        with self._borrow() as handle, ffi.from_buffer("char[]", buffer) as memory:
            self._check_range(offset, len(memory))
            record = ffi.new("um_error *")
            if lib.um_store_write(handle, offset, memory, len(memory), record) < 0:
                raise make_record_error(record)

    def flush(self) -> None:
        with self._borrow() as handle:
            record = ffi.new("um_error *")
            if lib.um_store_flush(handle, record) < 0:
                raise make_record_error(record)

    def close(self) -> None:
        """Closes it once calls in other threads have ended. What was written is visible to others, not yet durable:
        that takes `flush`."""
        handle = self._take(owned=False)
        if handle is None:
            return
        record = ffi.new("um_error *")
        if lib.um_store_close(handle, record) < 0:
            raise make_record_error(record)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is None or self._process != os.getpid():
            return
        warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
        self.close()

    def __repr__(self) -> str:
        state = " (closed)" if self.closed else ""
        return f"<{type(self).__name__} of {self.size} bytes{state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{self!r} cannot be pickled: make it anew in the other process, or pickle a FileStore")

    def _release(self) -> um_store:
        """Hands the native store to a region or a wrapper. ClosedError if it is closed or has an owner already."""
        handle = self._take(owned=True)
        if handle is None:
            self._refuse()
        return handle

    def _reclaim(self, handle: um_store) -> None:
        with self._changed:
            self._handle, self._owned = handle, False

    def _take(self, *, owned: bool) -> um_store | None:
        """The handle, once no call uses it; None if it is gone."""
        if self._process != os.getpid():
            # The engine closed the descriptors at the fork; locks of threads that did not survive it stay locked.
            self._handle = None
            return None
        deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        with self._changed:
            handle, self._handle = self._handle, None
            if handle is None:
                return None
            while self._calls > 0:
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    self._handle = handle
                    raise errors.StoreTimeoutError(
                        errno.ETIMEDOUT,
                        f"a call in another thread did not end in {CLOSE_TIMEOUT_SECONDS:g} s",
                        repr(self),
                        "flush",
                    )
            self._owned = owned
        return handle

    @contextmanager
    def _borrow(self) -> Iterator[um_store]:
        """The handle for one call, which `close` waits for."""
        if self._process != os.getpid():
            raise errors.make_forked_error()
        with self._changed:
            handle = self._handle
            if handle is None:
                self._refuse()
            self._calls += 1
        try:
            yield handle
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _refuse(self) -> NoReturn:
        if self._owned:
            raise errors.ClosedError(f"{self!r} belongs to a region or a wrapper already; use that, or open another")
        raise errors.ClosedError(f"{self!r} is closed")

    def _check_range(self, offset: int, length: int) -> None:
        if not 0 <= offset <= self.size - length:
            raise ValueError(f"{length} bytes at offset {offset} pass the store's size, {self.size}")

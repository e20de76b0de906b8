"""Raising failed fills in the threads that met them.

A fault cannot raise: the page is filled with 0xFF and the engine keeps a record. A daemon thread waits for records
without the GIL and raises each as an asynchronous exception in the thread it happened to, or in the main thread where
Python does not know that thread. It arrives at that thread's next check for such, soon, not at once; `Region.check`
is exact.

A thread can have one such exception on its way. What fails before it arrives comes with it, as notes. None is sent to a
thread that is inside a method of a region or a pager: there it could keep a lock from being released.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
import weakref
from types import FrameType
from typing import TYPE_CHECKING

from umappy._engine import lib
from umappy.errors import StoreError

if TYPE_CHECKING:
    from umappy.region import Region

log = logging.getLogger("umappy")

WAIT_MS = 1000
RETRY_MS = 10
"""How soon a thread that could not be interrupted is looked at again."""
_PACKAGE = os.path.dirname(__file__)
_METHODS = {os.path.join(_PACKAGE, *name) for name in (("region.py",), ("pager.py",), ("_handle.py",))}
_HELPERS = {contextlib.__file__, threading.__file__}

_regions: weakref.WeakSet[Region] = weakref.WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None

_set_async_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exception.argtypes = [ctypes.c_ulong, ctypes.py_object]


def watch(region: Region) -> None:
    with _lock:
        _regions.add(region)


def start() -> None:
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_deliver, name="umappy-delivery", daemon=True)
            _thread.start()


def _forget_in_child() -> None:
    global _thread, _lock, _regions
    _thread, _lock, _regions = None, threading.Lock(), weakref.WeakSet()
    _on_its_way.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class _Batch:
    """Failures that one thread is to be told of by one exception."""

    def __init__(self, error: StoreError) -> None:
        self.first = error
        self.more: list[StoreError] = []
        self.has_arrived = False


_on_its_way: dict[int, _Batch] = {}
"""By the thread's native id, which unlike its ident is not that of the next thread at once. The delivery's alone."""


def _deliver() -> None:
    unsent: list[tuple[int, StoreError]] = []
    while True:
        try:
            if lib.um_pager_error_wait(RETRY_MS if unsent else WAIT_MS):
                unsent += _collect()
            unsent = _send(unsent)
        except Exception:
            log.exception("an error of a fault could not be delivered; Region.errors has it")


def _collect() -> list[tuple[int, StoreError]]:
    """The failures since the last time, each with the native id of the thread it happened to."""
    with _lock:
        regions = list(_regions)
    return [failure for region in regions for failure in iter(region._take_fault_error, None)]


def _send(failures: list[tuple[int, StoreError]]) -> list[tuple[int, StoreError]]:
    """Returns those whose threads cannot be interrupted just now."""
    if not failures:
        return failures
    idents = {thread.native_id: thread.ident for thread in threading.enumerate()}
    main = threading.main_thread()
    for gone in _on_its_way.keys() - idents:
        del _on_its_way[gone]
    later = []
    for native_id, error in failures:
        known = native_id if idents.get(native_id) else main.native_id
        if known is None or (ident := idents.get(known)) is None:
            log.error("a thread that no longer is met: %s", error)
        elif _is_inside(sys._current_frames().get(ident)):
            later.append((native_id, error))
        elif not _joins(known, error):
            _on_its_way[known] = batch = _Batch(error)
            if not _set_async_exception(ident, _make_class(batch)):
                later.append((native_id, error))  # it has just ended: next time it is the main thread's
                del _on_its_way[known]
    return later


def _is_inside(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename in _HELPERS:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename in _METHODS


def _joins(native_id: int, error: StoreError) -> bool:
    """Whether an exception that has yet to arrive in the thread takes `error` along."""
    batch = _on_its_way.get(native_id)
    if batch is None:
        return False
    batch.more.append(error)
    if batch.has_arrived and error in batch.more:  # too late
        batch.more.remove(error)
        return False
    return True


def _make_class(batch: _Batch) -> type[StoreError]:
    """The interpreter takes a class and calls it without arguments, so the error travels in a class of its own."""
    error = batch.first
    kind = type(error)

    def init(self: StoreError) -> None:
        kind.__init__(self, error.errno or 0, error.strerror or "", error.store, error.op, error.offset, error.length)
        batch.has_arrived = True
        while batch.more:
            self.add_note(f"and then: {batch.more.pop(0)}")

    names = {
        "__init__": init,
        "__reduce__": lambda self: error.__reduce__(),
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), names)

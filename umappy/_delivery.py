"""Raising failed fills in the threads that met them.

A fault cannot raise: the page is filled with 0xFF and the engine keeps a record. A daemon thread waits for records
without the GIL and raises each as an asynchronous exception in the thread it happened to, or in the main thread where
Python does not know that thread. It arrives at that thread's next check for such, soon, not at once; `Region.check`
is exact.

A thread can have one such exception on its way. What fails before it arrives comes with it, as notes. None is sent to a
thread that is inside a method of a region or a pager: there it could keep a lock from being released; nor inside
`take`. These end with `Region.check`, which takes back what was held up by that.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
import weakref
from dataclasses import dataclass, replace
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
_METHODS = {os.path.join(_PACKAGE, name) for name in ("region.py", "pager.py", "take.py", "_handle.py", "_delivery.py")}
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


def take_back(region: Region) -> StoreError | None:
    """Returns the oldest failure of the region that was to be raised in this thread and has not been sent yet."""
    me = threading.get_native_id()
    with _sending:
        for failure in _unsent:
            if failure.thread_id == me and failure.region_id == id(region):
                _unsent.remove(failure)
                return failure.error
    return None


def _forget_in_child() -> None:
    global _thread, _lock, _sending, _regions
    _thread, _lock, _sending, _regions = None, threading.Lock(), threading.Lock(), weakref.WeakSet()
    _unsent.clear()
    _on_its_way.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@dataclass(frozen=True, eq=False)
class _Failure:
    thread_id: int
    """The native id of the thread to raise it in."""
    region_id: int
    error: StoreError


class _Batch:
    """Failures that one thread is to be told of by one exception."""

    def __init__(self, error: StoreError) -> None:
        self.first = error
        self.more: list[StoreError] = []
        self.has_arrived = False


_sending = threading.Lock()
"""Whoever has it sees each failure that is not raised yet, either here or in the engine."""
_unsent: list[_Failure] = []
_on_its_way: dict[int, _Batch] = {}
"""By the thread's native id, which unlike its ident is not that of the next thread at once. The delivery's alone."""


def _deliver() -> None:
    while True:
        lib.um_pager_error_wait(RETRY_MS if _unsent else WAIT_MS)
        try:
            _look()
        except Exception:
            log.exception("an error of a fault could not be delivered; Region.errors has it")


def _look() -> None:
    with _lock:
        regions = list(_regions)  # not let go of under a lock: the last reference to a region closes it
    with _sending:
        for region in regions:
            while (failure := region._take_fault_error()) is not None:
                _unsent.append(_Failure(failure[0], id(region), failure[1]))
        if _unsent:
            _send()


def _send() -> None:
    """Sends what is unsent, but for threads that cannot be interrupted just now."""
    idents = {thread.native_id: thread.ident for thread in threading.enumerate()}
    main = threading.main_thread()
    for gone in _on_its_way.keys() - idents:
        del _on_its_way[gone]
    for failure in tuple(_unsent):
        if failure.thread_id not in idents and main.native_id is not None:
            _unsent.remove(failure)
            failure = replace(failure, thread_id=main.native_id)
            _unsent.append(failure)
        ident = idents.get(failure.thread_id)
        if ident is None:
            log.error("a thread that no longer is met: %s", failure.error)
        elif _is_inside(sys._current_frames().get(ident)):
            continue
        elif not _joins(failure):
            batch = _Batch(failure.error)
            if not _set_async_exception(ident, _make_class(batch)):
                continue  # it has just ended: next time it is the main thread's
            _on_its_way[failure.thread_id] = batch
        _unsent.remove(failure)


def _is_inside(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename in _HELPERS:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename in _METHODS


def _joins(failure: _Failure) -> bool:
    """Whether an exception that has yet to arrive in the thread takes this one along."""
    batch = _on_its_way.get(failure.thread_id)
    if batch is None:
        return False
    batch.more.append(failure.error)
    if batch.has_arrived and failure.error in batch.more:  # too late
        batch.more.remove(failure.error)
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

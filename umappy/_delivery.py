"""Raising failed fills in the threads that met them.

A fault cannot raise: the page is filled with 0xFF and the engine keeps a record. A daemon thread waits for records
without the GIL and raises each as an asynchronous exception in the thread it happened to, or in the main thread where
Python does not know that thread. It arrives at that thread's next check for such, soon, not at once; `Region.check`
is exact.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING

from umappy._engine import lib
from umappy.errors import StoreError

if TYPE_CHECKING:
    from umappy.region import Region

log = logging.getLogger("umappy")

WAIT_MS = 1000

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


os.register_at_fork(after_in_child=_forget_in_child)


def _deliver() -> None:
    while True:
        if not lib.um_pager_error_wait(WAIT_MS):
            continue
        with _lock:
            regions = list(_regions)
        for region in regions:
            while (failure := region._take_fault_error()) is not None:
                thread_id, error = failure
                _raise_in(thread_id, error)
        del regions


def _raise_in(native_id: int, error: StoreError) -> None:
    known = {thread.native_id: thread.ident for thread in threading.enumerate()}
    ident = known.get(native_id) or threading.main_thread().ident
    if ident is not None:
        _set_async_exception(ident, _make_class(error))


def _make_class(error: StoreError) -> type[StoreError]:
    """The interpreter takes a class and calls it without arguments, so the error travels in a class of its own."""
    kind = type(error)

    def init(self: StoreError) -> None:
        kind.__init__(self, error.errno or 0, error.strerror or "", error.store, error.op, error.offset, error.length)

    names = {
        "__init__": init,
        "__reduce__": lambda self: error.__reduce__(),
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), names)

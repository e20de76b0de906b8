"""The last flush: the engine writes dirty pages of regions that are still mapped when the process ends.

It is the engine's, in C, since daemon threads may be stopped in the middle of anything and yet go on writing. Three
ways lead to it: C's atexit, the end of Py_Finalize (a Python that Ctrl-C ends kills itself by the signal, without
atexit), and multiprocessing's finalizers (its forked children end by os._exit).
"""

from __future__ import annotations

import ctypes
import os
import sys

from umappy._engine import ffi, lib
from umappy.config import config

# After the finalizers of everybody who may still write.
PRIORITY = -(1 << 20)

_finalizer_of: int | None = None  # process

# Its table may be full; then there is still C's atexit.
ctypes.pythonapi.Py_AtExit(ctypes.c_void_p(int(ffi.cast("uintptr_t", ffi.addressof(lib, "um_exit_flush")))))


def arm() -> None:
    """From now on there is something to flush."""
    global _finalizer_of
    timeout_ms = round(config.exit_timeout_seconds * 1000)
    lib.um_exit_arm(timeout_ms)
    if "multiprocessing.process" not in sys.modules or _finalizer_of == os.getpid():
        return
    from multiprocessing import process, util

    if process.parent_process() is not None:
        util.Finalize(None, _flush_and_arm, (timeout_ms,), exitpriority=PRIORITY)
        _finalizer_of = os.getpid()


def _flush_and_arm(timeout_ms: int) -> None:
    lib.um_exit_flush()
    lib.um_exit_arm(timeout_ms)  # a child that was spawned goes on to a normal exit

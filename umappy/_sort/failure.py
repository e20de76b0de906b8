"""After a failure: letting go of arrays it would keep alive, and of its echoes."""

from __future__ import annotations

import contextlib
import time
import traceback

from umappy.errors import StoreError

# The pager raises an error of a fault in its thread, or the main thread, as soon as that is not inside the pager.
ECHO_SECONDS = 0.3


def release_frames(error: BaseException | None) -> None:
    """Empties the frames that `error`, and the errors it came from, went through and that have ended.

    They hold views of regions, which then could not be closed, and at times the error itself, so that only the garbage
    collector would end it.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def absorb_echoes(error: BaseException) -> None:
    """Waits for what the pager may still raise in this thread about the same trouble as `error`, and drops it.

    Otherwise it would arrive somewhere in the caller's program, or in the main thread once this one has ended.
    """
    if not isinstance(error, StoreError):
        return
    deadline = time.monotonic() + ECHO_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(StoreError):
            time.sleep(ECHO_SECONDS / 20)

"""Letting go of arrays that a failure would keep alive."""

from __future__ import annotations

import traceback


def release_frames(error: BaseException | None) -> None:
    """Empties the frames that `error`, and the errors it came from, went through and that have ended.

    They hold views of regions, which then could not be closed, and at times the error itself, so that only the garbage
    collector would end it.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

"""numpy's sort with everything in memory."""

from __future__ import annotations

import os

import numpy as np

from harness.child import Meter


def sort_resident(meter: Meter, path: str) -> dict[str, float]:
    """Reads the int64 in, sorts them, and writes them over the file."""
    with meter:
        numbers = np.fromfile(path, np.int64)
        numbers.sort()
        numbers.tofile(path)
        sync(path)
    return {}


def sync(path: str) -> None:
    """What was written to the file reaches the disk."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)

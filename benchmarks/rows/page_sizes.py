"""The contenders of sequential.py, random_reads.py and update.py with region pages of a given size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import umappy
from harness.child import Meter
from rows.random_reads import gather_umappy
from rows.sequential import sum_umappy
from rows.update import add_umappy

WORK: dict[str, Callable[..., dict[str, float]]] = {"sum": sum_umappy, "gather": gather_umappy, "add": add_umappy}


def run_paged(meter: Meter, work: str, page_size: int, **arguments: Any) -> dict[str, float]:
    """Does a work of WORK with pages of `page_size` bytes."""
    umappy.config.page_size = page_size
    return WORK[work](meter, **arguments)

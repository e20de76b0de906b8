"""Which region an array's memory lies in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from umappy._ranges import find_bounds
from umappy.region import Region


def region_of(a: NDArray[Any]) -> tuple[Region, int] | None:
    """Returns the region that `a`'s memory lies in and the byte of the region at which `a` begins.

    `a` may be any view: of an array from `np.frombuffer(region)`, a slice, a reshape, another dtype. The byte is that
    of the lowest address `a` touches. None when `a` lies elsewhere, a copy for instance.
    """
    region = _find_region(a)
    if region is None:
        return None
    low, high = find_bounds(a)
    offset = low - region.address
    if offset < 0 or offset + (high - low) > len(region):
        return None
    return region, offset


def _find_region(owner: object) -> Region | None:
    while owner is not None:
        if isinstance(owner, Region):
            return owner
        if isinstance(owner, memoryview):
            owner = owner.obj
        elif isinstance(owner, np.ndarray):
            owner = owner.base
        else:
            return None
    return None

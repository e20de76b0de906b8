"""Which bytes and pages of a region a caller means: slices, lists of them, byte offsets, arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

Range = tuple[int, int]
"""Byte offset and length."""


@dataclass(frozen=True)
class Extent:
    """Where a region lies, and how it is cut."""

    address: int
    size: int
    page_size: int

    def find_pages(self, start: int, length: int) -> range:
        """The pages that lie at least partly in the range."""
        return range(start // self.page_size, -(-(start + length) // self.page_size) if length else 0)


def find_bounds(a: NDArray[Any]) -> tuple[int, int]:
    """Returns the lowest address `a` touches and the one behind the highest."""
    low = high = a.__array_interface__["data"][0]
    if a.size == 0:
        return low, high
    for length, stride in zip(a.shape, a.strides, strict=True):
        reach = (length - 1) * stride
        low, high = low + min(0, reach), high + max(0, reach)
    return low, high + a.itemsize


def read_slice(what: slice, extent: Extent) -> Range:
    start, stop, step = what.indices(extent.size)
    if step != 1:
        raise ValueError(f"{what!r}: wants a slice without a step")
    return start, max(0, stop - start)


def read_ranges(what: object, extent: Extent) -> list[Range]:
    """The ranges that a slice, a sequence of slices, an array over the region, or None (all) stands for."""
    if what is None:
        return [(0, extent.size)]
    if isinstance(what, slice):
        return [read_slice(what, extent)]
    if isinstance(what, np.ndarray):
        low, high = find_bounds(what)
        if low < extent.address or high > extent.address + extent.size:
            raise ValueError(
                f"an array of shape {what.shape} whose memory does not lie in this region: wants one over it, as from "
                "np.frombuffer(region), not a copy"
            )
        return [(low - extent.address, high - low)]
    if _is_slices(what):
        return [read_slice(one, extent) for one in what]
    raise TypeError(f"{what!r}: wants a slice of bytes, as in slice(start, stop), a list of them, or an array over it")


def read_pages(what: object, extent: Extent, count_max: int) -> NDArray[np.uint64]:
    """The first `count_max` pages named by a sequence of slices, or by byte offsets; sorted, each once."""
    if _is_slices(what) and len(what):
        pages = _collect_slices(what, extent, count_max)
    else:
        pages = _read_offsets(what, extent) // extent.page_size
    unique, place = np.unique(pages, return_index=True)
    if len(unique) > count_max:
        unique = np.sort(pages[np.sort(place)[:count_max]])
    return unique.astype(np.uint64)


def _is_slices(what: object) -> TypeGuard[Sequence[slice]]:
    return isinstance(what, list | tuple) and all(isinstance(one, slice) for one in what)


def _collect_slices(slices: Sequence[slice], extent: Extent, count_max: int) -> NDArray[np.int64]:
    found: list[NDArray[np.int64]] = []
    left = count_max
    for one in slices:
        pages = extent.find_pages(*read_slice(one, extent))[: max(0, left)]
        found.append(np.arange(pages.start, pages.stop, dtype=np.int64))
        left -= len(pages)
    return np.concatenate(found)


def _read_offsets(what: object, extent: Extent) -> NDArray[np.int64]:
    try:
        offsets = np.asarray(what)
    except ValueError:  # a ragged list
        offsets = np.asarray(None)
    if offsets.size == 0:
        return np.empty(0, np.int64)
    if offsets.dtype.kind not in "iu" or offsets.ndim == 0:
        raise TypeError(
            f"{what!r}: wants a slice of bytes, as in slice(start, stop), a list of slices, or an array of byte offsets"
        )
    bad = (offsets < -extent.size) | (offsets >= extent.size)
    if bad.any():
        raise IndexError(f"byte offset {offsets[bad][0]} is outside a region of {extent.size} bytes")
    flat = offsets.astype(np.int64).reshape(-1)
    return np.where(flat < 0, flat + extent.size, flat)

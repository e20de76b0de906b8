"""Sorting arrays larger than memory.

An external merge sort. Sorted runs as long as a buffer go to scratch; then the runs are merged by partitions between
sampled splitters, each of which is sorted again: every core works on the merge, and that is faster than a heap. Each
byte is read twice and written twice, as long as the data is below about budget squared over the size of one read (128
KiB); beyond that every merge pass adds one of each. Data that fits in the buffers is read once and written once.
(Knuth, The Art of Computer Programming 3, 5.4; sampled splitters: see _sort.cuts.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from umappy._sort.failure import release_frames
from umappy._sort.job import Job, is_same_memory
from umappy._sort.keys import Ordering, make_ordering
from umappy._sort.progress import ProgressCallback, open_report

Array = TypeVar("Array", bound=NDArray[Any])


def sort(
    a: Array,
    *,
    order: str | Sequence[str] | None = None,
    out: Array | None = None,
    memory: SupportsIndex | str | None = None,
    progress: bool | ProgressCallback | None = None,
    scratch_dir: str | None = None,
) -> Array:
    """Sorts `a`, which may be far larger than memory, and returns the sorted array: `out`, or `a` itself.

    The result is that of `np.sort(a, order=order)`, bit for bit but for the order of elements that compare equal
    (the sort is not stable): NaN and NaT last, structured elements by the fields of `order` and then by all others.

    Parameters:
        a: one-dimensional, contiguous, of any dtype without Python objects. In a region, or any array in memory.
        order: for structured dtypes, the field or fields to compare first.
        out: where the result goes: an array like `a`. Then `a` is only read. Default: `a` is sorted in place.
        memory: bytes, or a str such as "256MiB": how much of the budget of `a`'s pager to use (default: all of it).
            If `a` lies in no region: of a pager for this call (default: `umappy.config.memory`).
        progress: a callable gets (bytes written, bytes to write) now and then; True shows a bar on stderr, False does
            not; by default there is one if stderr is a terminal and rich is installed.
        scratch_dir: folder for scratch, as large as `a` (twice that if the merge takes several passes). Default: the
            folder of the output's file, else `umappy.config.temp_dir`.

    Errors: TypeError for a dtype that cannot be sorted from outside memory; ValueError for a shape, layout or `out`
    that does not fit; BudgetError if `memory` is more than the pager has or too little; StoreError, StoreFullError
    when a store or the scratch folder fails. With `out`, `a` is whole after any error. In place, `a` is whole until the
    last pass begins to write over it. Every exception carries a note that says which it is.
    """
    target = a if out is None else out
    try:
        ordering = _check_arguments(a, order, out)
        if a.size < 2 or a.dtype.itemsize == 0:
            target[...] = a
        else:
            with open_report(progress) as report:
                Job(a, target, ordering, memory, scratch_dir).run(report)
    except BaseException as error:
        release_frames(error)
        del a, out, target  # the error keeps this frame, and would keep the arrays' regions from closing
        raise
    return target


def _check_arguments(a: object, order: str | Sequence[str] | None, out: object) -> Ordering:
    array = _check_array(a, "a")
    if out is None:
        if not array.flags.writeable:
            raise ValueError("a is read-only: map it with mode='r+' to sort it in place, or pass out=")
    else:
        result = _check_array(out, "out")
        if not result.flags.writeable:
            raise ValueError("out is read-only: map it with mode='r+' or 'w+'")
        if result.dtype != array.dtype or result.shape != array.shape:
            raise ValueError(
                f"out has dtype {result.dtype} and shape {result.shape}, a has {array.dtype} and {array.shape}: "
                "they must be the same"
            )
        if np.may_share_memory(array, result) and not is_same_memory(array, result):
            raise ValueError("out overlaps a in part: leave out= away to sort in place, or pass memory of its own")
    return make_ordering(array.dtype, order if order is None or isinstance(order, str) else list(order))


def _check_array(a: object, name: str) -> NDArray[Any]:
    if not isinstance(a, np.ndarray):
        raise TypeError(f"{name} is a {type(a).__name__}: wants a numpy array, such as np.frombuffer(region, dtype)")
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: sort its data, or np.ma.sort what fits in memory")
    if a.dtype.hasobject or a.dtype.kind not in "biufcmMSUV":
        raise TypeError(
            f"{name} has dtype {a.dtype}, whose elements only point to Python's memory and cannot be written to a "
            "store: use a dtype of fixed width, such as 'S20', 'U20' or a structured one"
        )
    if a.ndim != 1:
        raise ValueError(
            f"{name} has {a.ndim} dimensions: umappy.sort takes one. For all elements in one order pass a.reshape(-1); "
            "to sort each row, sort row by row"
        )
    if not a.flags.c_contiguous:
        raise ValueError(f"{name} is not contiguous (strides {a.strides}): copy it to a contiguous array first")
    return a

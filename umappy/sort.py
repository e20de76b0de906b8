"""Sorting arrays larger than memory.

An external merge sort. Sorted runs as long as a buffer go to scratch; then the runs are merged by partitions between
sampled splitters, which lets every core work on the merge and uses numpy's SIMD sort for it. Each byte is read twice
and written twice, as long as the data is below about budget squared over the size of one read (128 KiB); beyond that
every merge pass adds one of each. Data that fits in the buffers is read once and written once.
(Knuth, The Art of Computer Programming 3, 5.4; sampled splitters: see _sort.cuts.)
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from umappy._engine import lib
from umappy._sort.failure import release_frames
from umappy._sort.keys import Ordering, make_ordering
from umappy._sort.merge import merge_runs
from umappy._sort.plan import Plan, make_plan
from umappy._sort.progress import ProgressCallback, SortProgress, open_report
from umappy._sort.runs import make_runs
from umappy._sort.scratch import find_folder, open_scratch
from umappy._sort.setup import Setup
from umappy._sort.stream import ByteStream
from umappy._sort.workers import make_buffer
from umappy.array import region_of
from umappy.config import Config, config
from umappy.errors import BudgetError, StoreError
from umappy.pager import Pager
from umappy.region import Region
from umappy.sizes import format_size

Array = TypeVar("Array", bound=NDArray[Any])

SCRATCH_PAGE_BYTES = 64 << 10


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
                _Job(a, target, ordering, memory, scratch_dir).run(report)
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
        if np.may_share_memory(array, result) and not _is_same(array, result):
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


def _is_same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(a.__array_interface__["data"][0] == b.__array_interface__["data"][0])


@dataclass(frozen=True)
class _Job:
    """One sort with its arguments checked: at least two elements."""

    source: NDArray[Any]
    target: NDArray[Any]
    ordering: Ordering
    memory: SupportsIndex | str | None
    scratch_dir: str | None

    def run(self, report: ProgressCallback | None) -> None:
        region = self._find_region()
        with self._open_pager(region) as (pager, memory):
            scratch_page = _choose_scratch_page(pager, memory)
            found = (region_of(self.source), region_of(self.target))
            page = max([scratch_page, *(pair[0].page_size for pair in found if pair)])
            private = min(memory * 3 // 4, _find_spare(pager, page))
            plan = make_plan(len(self.source), self.ordering, memory, private, page, scratch_page)
            progress = SortProgress(self.source.nbytes * (1 + plan.passes), report)
            try:
                with pager.reserved(plan.private_bytes):
                    self._sort(plan, pager, scratch_page, progress)
            except BaseException as error:
                for pair in found:
                    _forget_failures(pair[0] if pair else None)
                error.add_note(f"umappy.sort: {self._describe_state(progress)}")
                raise
            progress.poll()

    def _find_region(self) -> Region | None:
        """The region whose pager is used: that of the input, else that of the output."""
        found = region_of(self.source) or region_of(self.target)
        return found[0] if found else None

    @contextlib.contextmanager
    def _open_pager(self, region: Region | None) -> Iterator[tuple[Pager, int]]:
        memory = config.resolve(Config.memory, self.memory)
        if region is None:
            with Pager(memory=memory) as pager:
                yield pager, memory
            return
        budget = region.pager.memory
        if self.memory is None:
            memory = budget
        if memory > budget:
            raise BudgetError(
                f"memory is {format_size(memory)}, and the pager of the array has {format_size(budget)}: "
                "leave memory= away to use all of it, or map the array with a larger Pager"
            )
        yield region.pager, memory

    def _sort(self, plan: Plan, pager: Pager, page_size: int, progress: SortProgress) -> None:
        window = plan.window_bytes
        source = ByteStream.over_array(self.source, window)
        target = ByteStream.over_array(self.target, window)
        count, size = len(self.source), self.source.nbytes
        buffers = [make_buffer(plan.buffer_bytes) for _ in range(plan.workers)]
        setup = Setup(self.ordering, plan, buffers, progress)
        if plan.in_memory:
            make_runs(setup, source, target, count, is_last=True)
            return
        folder = self.scratch_dir or find_folder(target.region or source.region)
        with contextlib.ExitStack() as current:
            region = current.enter_context(open_scratch(folder, size, pager, page_size))
            scratch = ByteStream.over_region(region, window)
            runs = make_runs(setup, source, scratch, count, is_last=False)
            for left in range(plan.passes - 1, -1, -1):
                groups = [runs[start : start + plan.fan_in] for start in range(0, len(runs), plan.fan_in)]
                if left == 0:
                    merge_runs(setup, scratch, target, groups, is_last=True)
                    return
                with contextlib.ExitStack() as following:
                    region = following.enter_context(open_scratch(folder, size, pager, page_size))
                    merged = ByteStream.over_region(region, window)
                    runs = merge_runs(setup, scratch, merged, groups, is_last=False)
                    current.close()
                    scratch = merged
                    current.push(following.pop_all())

    def _describe_state(self, progress: SortProgress) -> str:
        in_place = _is_same(self.source, self.target)
        if not progress.output_touched:
            return "nothing was written to the array; it is as it was" if in_place else "neither a nor out was changed"
        if in_place:
            return (
                "the array was being written over; it is a mixture of sorted and unsorted parts in which elements are "
                "missing and others doubled. Restore it from its origin"
            )
        return "a is as it was; out is written in part"


def _forget_failures(region: Region | None) -> None:
    """The error about to be raised tells of them all: several threads met the same trouble at once."""
    while region is not None:
        try:
            region.check()
        except StoreError:
            continue
        return


def _choose_scratch_page(pager: Pager, memory: int) -> int:
    """The page size of scratch: smaller with small budgets.

    A merge reads a page where partitions meet in a run twice, and most of the budget is to be left for buffers.
    """
    size = SCRATCH_PAGE_BYTES
    while size > mmap.PAGESIZE and (size > memory // 1024 or _find_paging_least(pager, size) > memory // 4):
        size //= 2
    return size


def _find_spare(pager: Pager, page_size: int) -> int:
    """Bytes of the budget that can be taken from the pager, and pages of `page_size` still come and go."""
    return pager.memory - pager.stats().overhead - _find_paging_least(pager, page_size) - 4 * page_size


def _find_paging_least(pager: Pager, page_size: int) -> int:
    stats = pager.stats()
    return lib.um_pager_memory_min(page_size, stats.fillers, stats.evictors)

"""One sort from beginning to end: memory, scratch, the phases, and what is left when it fails."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, SupportsIndex

from numpy.typing import NDArray

from umappy._engine import lib
from umappy._sort.failure import absorb_echoes
from umappy._sort.keys import Ordering
from umappy._sort.merge import merge_runs
from umappy._sort.plan import Plan, Scratch, Task, make_plan
from umappy._sort.progress import ProgressCallback, SortProgress
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

SCRATCH_PAGE_BYTES = 64 << 10


@dataclass(frozen=True)
class Job:
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
            plan = make_plan(Task(len(self.source), self.ordering, memory, private, page, scratch_page))
            progress = SortProgress(self.source.nbytes * (1 + plan.passes), report)
            try:
                with pager.reserved(plan.private_bytes):
                    self._sort(plan, pager, scratch_page, progress)
            except BaseException as error:
                for pair in found:
                    _forget_failures(pair[0] if pair else None)
                absorb_echoes(error)
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
        source = ByteStream.over_array(self.source)
        target = ByteStream.over_array(self.target)
        count, size = len(self.source), self.source.nbytes
        buffers = [make_buffer(plan.buffer_bytes) for _ in range(plan.workers)]
        setup = Setup(self.ordering, plan, buffers, progress)
        if plan.scratch is Scratch.NONE:
            make_runs(setup, source, target, count, is_last=True)
            return
        if plan.scratch is Scratch.MEMORY:
            scratch = ByteStream.over_array(make_buffer(size))
            merge_runs(setup, scratch, target, [make_runs(setup, source, scratch, count, is_last=False)], is_last=True)
            return
        folder = self.scratch_dir or find_folder(target.region or source.region)
        with contextlib.ExitStack() as current:
            region = current.enter_context(open_scratch(folder, size, pager, page_size))
            scratch = ByteStream.over_region(region)
            runs = make_runs(setup, source, scratch, count, is_last=False)
            for left in range(plan.passes - 1, -1, -1):
                groups = [runs[start : start + plan.fan_in] for start in range(0, len(runs), plan.fan_in)]
                if left == 0:
                    merge_runs(setup, scratch, target, groups, is_last=True)
                    return
                with contextlib.ExitStack() as following:
                    region = following.enter_context(open_scratch(folder, size, pager, page_size))
                    merged = ByteStream.over_region(region)
                    runs = merge_runs(setup, scratch, merged, groups, is_last=False)
                    current.close()
                    scratch = merged
                    current.push(following.pop_all())

    def _describe_state(self, progress: SortProgress) -> str:
        in_place = is_same_memory(self.source, self.target)
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


def is_same_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(a.__array_interface__["data"][0] == b.__array_interface__["data"][0])

"""How much memory each part of a sort gets, and what follows from it: runs, merge passes, samples."""

from __future__ import annotations

import enum
import itertools
import math
import os
from dataclasses import dataclass

from umappy._sort.keys import Ordering
from umappy._sort.stream import SECTOR_BYTES
from umappy.errors import BudgetError
from umappy.sizes import format_size

WORKERS_MAX = 8
# A merge reads a run in pieces of about this size; shorter ones make a disk seek more than it reads.
PIECE_BYTES = 128 << 10
# Runs longer than this are not sorted or written faster, and a stop has to wait for them.
RUN_BYTES = 256 << 20
CHUNK_BYTES = 2 << 20
# Half of it is usual, and to stay in a processor's own cache.
BLOCK_BYTES = 1 << 20
# A page of scratch, as a rule.
EDGE_BYTES = 64 << 10
# Up to here one thread is as fast as several.
SINGLE_BYTES = 16 << 20
# Runs of a sort whose scratch is memory: enough to share out evenly and few enough to merge quickly.
RUNS_IN_MEMORY_MAX = 64
# Below that reading whole sectors costs more than another pass.
PIECE_BYTES_MIN = 4 * SECTOR_BYTES
RUN_COUNT_MIN = 16
SLACK_BYTES = 1 << 20
FAN_IN_MIN = 2


class Scratch(enum.Enum):
    """Where runs are written before they are merged."""

    NONE = enum.auto()  # one run is all
    MEMORY = enum.auto()
    REGION = enum.auto()


@dataclass(frozen=True)
class Plan:
    """The sizes of one sort."""

    scratch: Scratch
    workers: int
    private_bytes: int  # of the budget, for buffers, samples, and scratch in memory
    buffer_bytes: int  # each worker's: elements, what reading whole blocks of files adds, and the space below
    space_bytes: int  # at its end, for a chunk and a block; whole blocks of a file
    block_bytes: int  # gathered at once; at least an element
    chunk_bytes: int  # written at once; a multiple of the page unless pages are large for the budget
    run_count: int  # elements of a run, and of a partition at most
    edge_step: int  # edges between runs are multiples of so many elements, as far as they are whole pages then
    sample_step: int  # every so many-th element of a run has its key kept
    fan_in: int  # runs merged at once
    passes: int  # merge passes

    def count_runs(self, count: int) -> int:
        return _count_runs(count, self.run_count, self.edge_step)


@dataclass(frozen=True)
class Task:
    """What is to be sorted, through how much memory."""

    count: int
    ordering: Ordering
    memory: int  # bytes
    private: int  # of these, at most so many for buffers; the rest stays with the pager
    page_size: int  # the largest of the regions involved
    scratch_page: int  # of scratch regions

    @property
    def size(self) -> int:
        return self.count * self.ordering.dtype.itemsize

    @property
    def element_bytes(self) -> int:
        """What an element takes while it is sorted."""
        return self.ordering.dtype.itemsize + self.ordering.work_bytes


def make_plan(task: Task) -> Plan:
    """Returns the plan; BudgetError when a buffer would not hold a handful of elements.

    What fits is sorted in one buffer if it is small, else in several that are merged from memory to the output, so that
    all processors have work; both read and write everything once.
    """
    single = _plan_single(task)
    if single is not None and task.size <= SINGLE_BYTES:
        return single
    return _plan_in_memory(task) or single or _plan_in_region(task)


def _plan_single(task: Task) -> Plan | None:
    chunk = max(task.page_size, min(CHUNK_BYTES, task.size // 8))
    block = task.ordering.dtype.itemsize
    space = _round_up(chunk + block)
    buffer = _round_up(task.size + SECTOR_BYTES) + space
    if task.count * task.ordering.work_bytes + buffer > task.private:
        return None
    return Plan(
        scratch=Scratch.NONE,
        workers=1,
        private_bytes=task.count * task.ordering.work_bytes + buffer,
        buffer_bytes=buffer,
        space_bytes=space,
        block_bytes=block,
        chunk_bytes=chunk,
        run_count=task.count,
        edge_step=1,
        sample_step=task.count,
        fan_in=1,
        passes=0,
    )


def _plan_in_memory(task: Task) -> Plan | None:
    workers = _count_workers(task)
    room = task.private - task.size
    plan = _plan_buffers(task, room, workers, Scratch.MEMORY, run_bytes_max=max(task.size // (4 * workers), 1))
    if plan is None or plan.run_count * RUNS_IN_MEMORY_MAX < task.count:
        return None
    return plan


def _plan_in_region(task: Task) -> Plan:
    # Runs no longer than needed for one merge pass, as far as the budget goes.
    useful = max(RUN_BYTES, 2 * math.isqrt(task.size * PIECE_BYTES))
    plan = _plan_buffers(task, task.private, _count_workers(task), Scratch.REGION, run_bytes_max=useful)
    if plan is not None:
        return plan
    itemsize = task.ordering.dtype.itemsize
    run_least = max(RUN_COUNT_MIN, -(-FAN_IN_MIN * task.scratch_page // itemsize))
    least = 2 * (run_least * task.element_bytes + CHUNK_BYTES // 32 + itemsize + 4 * SECTOR_BYTES) * 32 // 31
    raise BudgetError(
        f"memory is {format_size(task.memory)}: too little to sort elements of {itemsize} bytes through pages of "
        f"{format_size(task.page_size)}; give about {format_size(least + task.memory - max(0, task.private))}"
    )


def _count_workers(task: Task) -> int:
    # One more than processors: while one waits for a store, the others have work (5.4 s against 5.8 s on two).
    return max(2, min(WORKERS_MAX, len(os.sched_getaffinity(0)) + 1, task.private // (128 * task.page_size)))


def _plan_buffers(task: Task, room: int, workers: int, scratch: Scratch, run_bytes_max: int) -> Plan | None:
    """Shares `room` bytes out to `workers`; None when that is too little."""
    itemsize = task.ordering.dtype.itemsize
    sample_bytes = room // 32
    share = (room - sample_bytes) // workers
    chunk = max(task.page_size, CHUNK_BYTES)
    while chunk > 4096 and chunk > share // 16:
        chunk //= 2
    block = max(itemsize, min(chunk, BLOCK_BYTES))
    space = _round_up(chunk + block)
    # So that a merge can read each run's part in whole sectors: two for each, as far as that is little.
    slack = _round_up(max(SECTOR_BYTES, min(share // 32, SLACK_BYTES)))
    run_count = min((share - space - slack - SECTOR_BYTES) // task.element_bytes, run_bytes_max // itemsize)
    piece = max(min(PIECE_BYTES_MIN, task.scratch_page), min(PIECE_BYTES, share // 48))
    fan_in = run_count * itemsize // piece if scratch is Scratch.REGION else RUNS_IN_MEMORY_MAX
    if run_count < RUN_COUNT_MIN or fan_in < FAN_IN_MIN:
        return None
    step = _find_edge_step(run_count, itemsize)
    runs = _count_runs(task.count, run_count, step)
    buffer = _round_up(run_count * itemsize) + slack + space
    passes = next(number for number in itertools.count(1) if fan_in**number >= runs)
    held = task.size if scratch is Scratch.MEMORY else 0
    return Plan(
        scratch=scratch,
        workers=workers,
        private_bytes=workers * (run_count * task.ordering.work_bytes + buffer) + sample_bytes + held,
        buffer_bytes=buffer,
        space_bytes=space,
        block_bytes=block,
        chunk_bytes=chunk,
        run_count=run_count,
        edge_step=step,
        sample_step=max(
            1, (64 << 10) // itemsize, -(-task.count * task.ordering.key_dtype.itemsize // max(1, sample_bytes))
        ),
        # The smallest with which as many passes do.
        fan_in=next(number for number in itertools.count(2) if number**passes >= runs),
        passes=passes,
    )


def _round_up(size: int) -> int:
    return -(-size // SECTOR_BYTES) * SECTOR_BYTES


def _find_edge_step(run_count: int, itemsize: int) -> int:
    for size in (EDGE_BYTES, SECTOR_BYTES):
        step = size // math.gcd(size, itemsize)
        if step <= run_count // 64:
            return step
    return 1


def _count_runs(count: int, run_count: int, step: int) -> int:
    """Returns how many runs of about equal length, cut at multiples of `step`, hold at most `run_count` each."""
    return -(-count // (run_count - step + 1))

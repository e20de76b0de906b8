"""How much memory each part of a sort gets, and what follows from it: runs, merge passes, samples."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass

from umappy._sort.keys import Ordering
from umappy.errors import BudgetError
from umappy.sizes import format_size

WORKERS_MAX = 8
# A merge reads a run in pieces of about this size; shorter ones make a disk seek more than it reads.
PIECE_BYTES = 128 << 10
# Runs longer than this are not sorted or written faster, and a stop has to wait for them.
RUN_BYTES = 256 << 20
CHUNK_BYTES = 1 << 20
RUN_COUNT_MIN = 16
FAN_IN_MIN = 2


@dataclass(frozen=True)
class Plan:
    """The sizes of one sort."""

    workers: int
    private_bytes: int  # of the budget, for buffers and samples
    buffer_bytes: int  # each worker's: elements, and the space below
    space_bytes: int  # at its end, for a chunk and an element
    chunk_bytes: int  # written at once; a multiple of the page unless pages are large for the budget
    run_count: int  # elements of a run, and of a partition at most
    sample_step: int  # every so many-th element of a run has its key kept
    fan_in: int  # runs merged at once
    passes: int  # merge passes
    window_bytes: int  # how far a worker prefetches

    @property
    def in_memory(self) -> bool:
        return self.passes == 0


def make_plan(count: int, ordering: Ordering, memory: int, private: int, page_size: int, scratch_page: int) -> Plan:
    """Returns the plan for sorting `count` elements through `memory` bytes, `private` of them for buffers.

    The rest stays with the pager, which reads and writes in pages of up to `page_size`, of `scratch_page` in scratch.
    BudgetError when a buffer would not hold a handful of elements.
    """
    itemsize = ordering.dtype.itemsize
    element = itemsize + ordering.work_bytes
    chunk = max(page_size, min(CHUNK_BYTES, count * itemsize // 8))
    if count * element + chunk + itemsize <= private:
        space = chunk + itemsize
        return Plan(
            workers=1,
            private_bytes=count * element + space,
            buffer_bytes=count * itemsize + space,
            space_bytes=space,
            chunk_bytes=chunk,
            run_count=count,
            sample_step=count,
            fan_in=1,
            passes=0,
            window_bytes=memory // 16,
        )

    sample_bytes = private // 32
    workers = max(2, min(WORKERS_MAX, len(os.sched_getaffinity(0)), private // (64 * page_size)))
    share = (private - sample_bytes) // workers
    chunk = max(page_size, CHUNK_BYTES)
    while chunk > 4096 and chunk > share // 16:
        chunk //= 2
    space = chunk + itemsize
    # Runs no longer than needed for one merge pass, as far as the budget goes.
    useful = max(RUN_BYTES, 2 * math.isqrt(count * itemsize * PIECE_BYTES))
    run_count = min((share - space) // element, useful // itemsize)
    piece = max(scratch_page, min(PIECE_BYTES, share // 32))
    run_least = max(RUN_COUNT_MIN, FAN_IN_MIN * piece // itemsize)
    if run_count < run_least:
        least = workers * (run_least * element + space) * 32 // 31 + 1
        raise BudgetError(
            f"memory is {format_size(memory)}: too little to sort elements of {itemsize} bytes through pages of "
            f"{format_size(page_size)}; give {least + memory - max(0, private)} bytes at least"
        )
    fan_in = run_count * itemsize // piece
    runs = -(-count // run_count)
    passes = next(number for number in itertools.count(1) if fan_in**number >= runs)
    sample_step = max(1, (64 << 10) // itemsize, -(-count * ordering.key_dtype.itemsize // sample_bytes))
    return Plan(
        workers=workers,
        private_bytes=workers * (run_count * element + space) + sample_bytes,
        buffer_bytes=run_count * itemsize + space,
        space_bytes=space,
        chunk_bytes=chunk,
        run_count=run_count,
        sample_step=sample_step,
        # The smallest with which as many passes do.
        fan_in=next(number for number in itertools.count(2) if number**passes >= runs),
        passes=passes,
        window_bytes=max(page_size, memory // (32 * workers)),
    )

"""What the size of a region's pages does to a sequential sum, random reads without a hint, and `a += 1; flush()`.

np.memmap has pages of 4 KiB only: it is measured again beside each size, as the level line.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import NumberFile, compute_sum, compute_values
from harness.place import Place
from harness.rounds import Run
from peers.memmap import add_memmap, gather_memmap, sum_memmap
from rows.page_sizes import run_paged
from rows.random_reads import SEED
from rows.update import Ledger

READS_MAX = 2000
"""A page of 2 MiB takes a millisecond."""
MEMORY_MIN = 72 << 20
"""The budget that pages of 2 MiB want."""
CONTENDERS = ("umappy", "np.memmap")
PAGE_SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20)

page_sizes = pytest.mark.axis("page_size", PAGE_SIZES)
contenders = pytest.mark.parametrize("contender", CONTENDERS)
fast = pytest.mark.device("fast")


def run(
    contest: Contest,
    subject: str,
    contender: str,
    page_size: int,
    prepare: Callable[[], dict[str, Run]],
    place: Place,
    **amount: int,
) -> None:
    """`amount` is the `nbytes` or the `items` of a round."""
    contest.run(
        f"{subject} by page size",
        contender,
        prepare,
        place=place,
        axis={"page_size": page_size},
        rounds=1 if contest.bench.rounds < 5 else 3,
        **amount,
    )


@contenders
@page_sizes
@fast
def bench_sum_by_page_size(contest: Contest, bench: Bench, place: Place, contender: str, page_size: int) -> None:
    def prepare() -> dict[str, Run]:
        numbers = place.numbers(bench.size)
        common = {"expected": {"sum": compute_sum(numbers.count)}, "path": numbers.path}
        ours = {"work": "sum", "page_size": page_size, "memory": max(bench.memory, MEMORY_MIN)}
        return {
            "umappy": bench.prepare(run_paged, place, **common, **ours),
            "np.memmap": bench.prepare(sum_memmap, place, **common),
        }

    run(contest, "sequential sum", contender, page_size, prepare, place, nbytes=bench.size)


@contenders
@page_sizes
@fast
def bench_random_reads_by_page_size(
    contest: Contest, bench: Bench, place: Place, contender: str, page_size: int
) -> None:
    reads = min(READS_MAX, bench.reads)

    def prepare() -> dict[str, Run]:
        numbers = place.numbers(bench.size)
        expected = {"sum": float(compute_values(numbers.pick(reads, SEED)).sum())}
        common = {"expected": expected, "path": numbers.path, "count": numbers.count, "reads": reads}
        ours = {"work": "gather", "page_size": page_size, "memory": max(bench.memory, MEMORY_MIN)}
        return {
            "umappy": bench.prepare(run_paged, place, **common, **ours),
            "np.memmap": bench.prepare(gather_memmap, place, seed=SEED, **common),
        }

    run(contest, "random reads", contender, page_size, prepare, place, items=reads)


@contenders
@page_sizes
@fast
def bench_update_by_page_size(contest: Contest, bench: Bench, place: Place, contender: str, page_size: int) -> None:
    def prepare() -> dict[str, Run]:
        # Of its own: others read place.numbers.
        numbers = NumberFile(os.path.join(place.folder, "page-sizes"), bench.size // 2 // 8)
        numbers.write()
        ledger = Ledger(numbers.count, numbers.read_sum, numbers.write)
        ours = {"work": "add", "page_size": page_size, "memory": max(bench.memory, MEMORY_MIN)}
        return {
            "umappy": ledger.check(bench.prepare(run_paged, place, path=numbers.path, **ours)),
            "np.memmap": ledger.check(bench.prepare(add_memmap, place, path=numbers.path)),
        }

    run(contest, "a += 1; flush()", contender, page_size, prepare, place, nbytes=bench.size // 2)

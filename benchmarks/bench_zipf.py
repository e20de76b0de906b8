"""Reads by Zipf's law: the misses of each policy, and what they cost."""

from __future__ import annotations

import dataclasses

import pytest

from harness.bench import MEMORY_MIN, Bench
from harness.contest import Contest
from harness.number_file import compute_values
from harness.place import Place
from harness.rounds import Run
from rows.zipf import EXPONENT, POLICIES, TIMES, make_trace, read_memmap, read_umappy

CONTENDERS = (
    "umappy",
    *(f"umappy {policy}" for policy in POLICIES if policy != "auto"),
    "np.memmap",
    "np.memmap MADV_RANDOM",
)
READS_PER_PAGE = 10
"""Reads for each 4 KiB of the budget; the half of them that warms up misses more than twice what the budget holds."""
OTHER_BYTES = 48 << 20
"""Of the cgroup, besides the budget: little, as what the interpreter leaves of it np.memmap has for its pages."""


def prepare(bench: Bench, place: Place, path: str, reads: int) -> dict[str, Run]:
    expected = {"sum": float(compute_values(make_trace(bench.size // 8, reads)).sum())}
    common = {"path": path, "size": bench.size, "reads": reads}
    contenders = {
        name: bench.prepare(
            read_umappy,
            place,
            expected=expected,
            memory=bench.memory,
            policy=name.removeprefix("umappy").strip() or "auto",
            **common,
        )
        for name in CONTENDERS
        if name.startswith("umappy")
    }
    return contenders | {
        "np.memmap": bench.prepare(read_memmap, place, expected=expected, **common),
        "np.memmap MADV_RANDOM": bench.prepare(read_memmap, place, expected=expected, advice="random", **common),
    }


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.device("fast")
def bench_zipf(contest: Contest, bench: Bench, place: Place, contender: str) -> None:
    memory = max(MEMORY_MIN, bench.size // 16 // 4096 * 4096)
    size = min(TIMES * memory, bench.size)
    reads = READS_PER_PAGE * memory // 4096
    capped = dataclasses.replace(bench, size=size, memory=memory, limit=memory + OTHER_BYTES)
    contest.run(
        f"zipf({EXPONENT}) reads",
        contender,
        lambda: prepare(capped, place, place.numbers(bench.size).path, reads),
        place=place,
        items=reads // 2,
        limit=capped.limit,
        rounds=1,
    )

"""The sum of twice the budget, again and again: what LRU and FIFO never hit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_sum
from harness.place import Place
from harness.rounds import Run
from peers import memmap, memory
from rows.loop import PASSES, loop_umappy

CONTENDERS = ("umappy", "umappy fifo", "np.memmap", "numpy in RAM")
PART = 2
"""The data is this part of the others' size: it is read again and again."""


def prepare(bench: Bench, place: Place, path: str) -> dict[str, Run]:
    expected = {"sum": PASSES * compute_sum(bench.size // 8)}

    def make(function: Callable[..., dict[str, float]], **arguments: object) -> Run:
        return bench.prepare(function, place, expected=expected, path=path, size=bench.size, **arguments)

    return {
        "umappy": make(loop_umappy, memory=bench.memory, policy="auto"),
        "umappy fifo": make(loop_umappy, memory=bench.memory, policy="fifo"),
        "np.memmap": make(memmap.sum_memmap, passes=PASSES),
        "numpy in RAM": make(memory.sum_resident, passes=PASSES),
    }


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.device("fast")
def bench_loop(contest: Contest, bench: Bench, place: Place, contender: str) -> None:
    capped = dataclasses.replace(bench, size=bench.size // PART).capped_for(2)
    contest.run(
        f"loop: {PASSES} sums of twice the budget",
        contender,
        lambda: prepare(capped, place, place.numbers(bench.size).path),
        place=place,
        nbytes=PASSES * capped.size,
        limit=capped.limit,
        rounds=1 if bench.rounds < 5 else 3,
    )

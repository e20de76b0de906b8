"""Random elements of one file, gathered by 1 to 64 threads: the more, the more faults at once (peers/threads.py)."""

from __future__ import annotations

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_values
from harness.place import Place
from harness.rounds import Run
from peers.threads import gather_by_threads
from rows.random_reads import SEED


def prepare(bench: Bench, place: Place, threads: int) -> dict[str, Run]:
    numbers = place.numbers(bench.size)
    common = {"path": numbers.path, "count": numbers.count, "reads": bench.reads, "threads": threads}
    expected = {"sum": float(compute_values(numbers.pick(bench.reads, SEED)).sum())}

    def make(**options: object) -> Run:
        return bench.prepare(gather_by_threads, place, expected=expected, **common, **options)

    return {
        "umappy": make(memory=bench.memory),
        "np.memmap": make(),
        "np.memmap MADV_RANDOM": make(advice="random"),
    }


@pytest.mark.parametrize("contender", ["umappy", "np.memmap", "np.memmap MADV_RANDOM"])
@pytest.mark.axis("threads", (1, 2, 4, 8, 16, 32, 64))
@pytest.mark.device("fast")
def bench_random_reads_by_threads(contest: Contest, bench: Bench, place: Place, contender: str, threads: int) -> None:
    contest.run(
        "random reads by threads",
        contender,
        lambda: prepare(bench, place, threads),
        place=place,
        axis={"threads": threads},
        items=bench.reads,
        rounds=1 if bench.rounds < 5 else 3,
    )

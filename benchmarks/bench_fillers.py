"""What more fillers gain: random reads by 16 threads, and `umappy.take`; from the device, and from a store 1 ms away.

Level lines are the device's best random 4 KiB, and one read after another through the same store.
"""

from __future__ import annotations

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_values
from harness.place import Place
from harness.rounds import Run
from peers.threads import gather_by_threads
from rows.random_reads import SEED
from rows.take import DELAY_SECONDS, read_one_by_one, take_umappy

THREADS = 16
SLOW_READS = 1000
"""Through the slow store, where one filler takes as many milliseconds."""
ONE_READS = 200
FILLERS = (1, 2, 4, 8, 16, 32, 64, 80)

fillers_axis = pytest.mark.axis("fillers", FILLERS)
fast = pytest.mark.device("fast")


def prepare(bench: Bench, place: Place, reads: int, fillers: int, slow: bool) -> dict[str, Run]:
    numbers = place.numbers(bench.size)
    common = {"path": numbers.path, "count": numbers.count, "reads": reads, "memory": bench.memory, "fillers": fillers}
    common["expected"] = {"sum": float(compute_values(numbers.pick(reads, SEED)).sum())}
    delay_seconds = DELAY_SECONDS if slow else 0.0
    return {
        "umappy": bench.prepare(gather_by_threads, place, threads=THREADS, delay_seconds=delay_seconds, **common),
        "umappy.take": bench.prepare(take_umappy, place, delay=slow, **common),
    }


@pytest.mark.parametrize("contender", ["umappy", "umappy.take", "device"])
@fillers_axis
@fast
def bench_random_reads_by_fillers(contest: Contest, bench: Bench, place: Place, contender: str, fillers: int) -> None:
    contest.run(
        "random reads by fillers",
        contender,
        lambda: prepare(bench, place, bench.reads, fillers, slow=False) | {"device": bench.prepare_limits(place)},
        place=place,
        axis={"fillers": fillers},
        items=bench.reads,
        rounds=1 if bench.rounds < 5 else 3,
        seconds=(lambda sample: bench.reads / sample.values["random"]) if contender == "device" else None,
    )


@pytest.mark.parametrize("contender", ["umappy", "umappy.take", "one read after another"])
@fillers_axis
@fast
def bench_slow_store_by_fillers(contest: Contest, bench: Bench, place: Place, contender: str, fillers: int) -> None:
    reads = min(SLOW_READS, bench.reads)

    def prepare_slow() -> dict[str, Run]:
        numbers = place.numbers(bench.size)
        expected = {"sum": float(compute_values(numbers.pick(ONE_READS, SEED)).sum())}
        one = bench.prepare(
            read_one_by_one, place, expected=expected, path=numbers.path, count=numbers.count, reads=ONE_READS
        )
        return prepare(bench, place, reads, fillers, slow=True) | {"one read after another": one}

    contest.run(
        "random reads by fillers, store with 1 ms latency",
        contender,
        prepare_slow,
        place=place,
        axis={"fillers": fillers},
        items=ONE_READS if contender == "one read after another" else reads,
        rounds=1 if bench.rounds < 5 else 3,
    )

"""From the touch of an absent page of 4 KiB to its data: the median, and the whole distribution among the values.

Every touch is timed in Python, around `a[i]`, in an order without pattern, one page in each 64 KiB. In it are two
readings of the clock and numpy's indexing: the value `present`, the median of touching a page that is there, 0.4 us
where this was written. The bare loop answers each fault from memory and is timed in C (rows/fault_latency.py). Where
the bytes are in the page cache, cores are kept from halting (harness/awake.py): else waking them is most of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.awake import keep_awake
from harness.bench import Bench
from harness.contest import Contest
from harness.place import Place
from harness.rounds import Run
from harness.sample import Sample
from peers.touches import sum_touches, touch_pages
from rows.fault_latency import build_program, run


@pytest.fixture(scope="module")
def program() -> Iterator[str]:
    with build_program() as path:
        yield path


def median_of(touches: int) -> Callable[[Sample], float]:
    """So many times the median: what the touches would take without the few that were disturbed."""
    return lambda sample: touches * sample.values["p50"] / 1e6


def hold_awake(run: Run) -> Run:
    def held() -> Sample:
        with keep_awake():
            return run()

    return held


def run_bare_loop(program: str) -> Sample:
    values = run(program).values
    values["max"] = values.pop("p100")
    return Sample(values=values)


def prepare(bench: Bench, place: Place, cached: bool, advice: str | None) -> dict[str, Run]:
    numbers = place.numbers(bench.size)
    total, _ = sum_touches(numbers, bench.reads)
    common = {"path": numbers.path, "count": numbers.count, "touches": bench.reads, "cached": cached}
    theirs = "np.memmap" if advice is None else f"np.memmap MADV_{advice.upper()}"
    return {
        "umappy": bench.prepare(touch_pages, place, expected={"sum": total}, memory=bench.memory, **common),
        theirs: bench.prepare(touch_pages, place, expected={"sum": total}, advice=advice, **common),
    }


@pytest.mark.parametrize("contender", ["umappy", "np.memmap", "bare uffd loop"])
@pytest.mark.device("fast")
def bench_fault_latency(contest: Contest, bench: Bench, place: Place, program: str, contender: str) -> None:
    def prepare_cached() -> dict[str, Run]:
        runs = {name: hold_awake(each) for name, each in prepare(bench, place, cached=True, advice=None).items()}
        return runs | {"bare uffd loop": lambda: run_bare_loop(program)}

    contest.run(
        "fault to data, bytes in the page cache",
        contender,
        prepare_cached,
        place=place,
        items=bench.reads,
        seconds=median_of(bench.reads),
    )


@pytest.mark.parametrize("contender", ["umappy", "np.memmap MADV_RANDOM"])
def bench_cold_fault_latency(contest: Contest, bench: Bench, place: Place, contender: str) -> None:
    contest.run(
        "fault to data, cold",
        contender,
        lambda: prepare(bench, place, cached=False, advice="random"),
        place=place,
        items=bench.reads,
        seconds=median_of(bench.reads),
    )

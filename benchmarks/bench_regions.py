"""Many regions of one pager: what each takes of time and memory, from its opening to its end.

Budget and limit grow by 64 KiB a region, which holds what a region reserves to find streams (60 KiB): the opening of a
region for which there is no such memory waits for it, 0.1 s, and then goes on without.
"""

from __future__ import annotations

import dataclasses

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_values
from harness.place import Place
from harness.rounds import Run
from peers.regions import SEED, map_memmaps, map_regions

REGION_BYTES = 64 << 10


def prepare(bench: Bench, place: Place, regions: int) -> dict[str, Run]:
    numbers = place.numbers(bench.size)
    common = {"path": numbers.path, "count": numbers.count, "regions": regions}
    expected = {"sum": float(compute_values(numbers.pick(regions, SEED)).sum())}
    return {
        "umappy": bench.prepare(map_regions, place, expected=expected, memory=bench.memory, **common),
        "np.memmap": bench.prepare(map_memmaps, place, expected=expected, **common),
    }


@pytest.mark.parametrize("contender", ["umappy", "np.memmap"])
@pytest.mark.axis("regions", (1, 16, 256, 4096))
@pytest.mark.device("fast")
def bench_regions(contest: Contest, bench: Bench, place: Place, contender: str, regions: int) -> None:
    more = REGION_BYTES * regions
    roomy = dataclasses.replace(bench, limit=bench.limit + more, memory=bench.memory + more)
    contest.run(
        "open, touch and close by regions",
        contender,
        lambda: prepare(roomy, place, regions),
        place=place,
        axis={"regions": regions},
        items=regions,
        limit=roomy.limit,
        rounds=1 if bench.rounds < 5 else 3,
    )

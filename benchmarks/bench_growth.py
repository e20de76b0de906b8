"""One touch in a page here and there of ever larger address spaces: what it costs, and what memory it takes.

The file is sparse and lies on the device. ext4 has no files of 16 TiB: the largest is one block less, which is what the
last point maps.
"""

from __future__ import annotations

import os

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.place import Place
from harness.rounds import Run
from peers.growth import GIB, make_sparse, sum_spread, touch_memmap, touch_region


def prepare(bench: Bench, place: Place, gib: int) -> dict[str, Run]:
    path = os.path.join(place.folder, "sparse")
    size = make_sparse(path, gib * GIB, bench.reads)
    common = {"path": path, "size": size, "touches": bench.reads}
    expected = {"sum": sum_spread(size, bench.reads)}
    return {
        "umappy": bench.prepare(touch_region, place, expected=expected, memory=bench.memory, **common),
        "np.memmap": bench.prepare(touch_memmap, place, expected=expected, **common),
        "np.memmap MADV_RANDOM": bench.prepare(touch_memmap, place, expected=expected, advice="random", **common),
    }


@pytest.mark.parametrize("contender", ["umappy", "np.memmap", "np.memmap MADV_RANDOM"])
@pytest.mark.axis("gib", (1, 16, 256, 4096, 16384))
@pytest.mark.device("fast")
def bench_touches_by_address_space(contest: Contest, bench: Bench, place: Place, contender: str, gib: int) -> None:
    contest.run(
        "touches by address space",
        contender,
        lambda: prepare(bench, place, gib),
        place=place,
        axis={"gib": gib},
        items=bench.reads,
        rounds=1 if bench.rounds < 5 else 3,
    )

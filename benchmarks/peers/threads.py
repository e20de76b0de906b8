"""Random elements gathered by many threads at once.

np.take with `mode="clip"` and `out` runs without the GIL (numpy 2.4), so the threads do fault at the same time: through
a store 1 ms away 16 of them read 13 times as fast as one. `a[indices]` and `a[i]` keep the GIL while they fault: there
threads gained nothing.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from harness.child import Meter
from harness.number_file import NumberFile
from peers.mapped import open_mapped
from rows.random_reads import SEED


def gather_by_threads(
    meter: Meter,
    path: str,
    count: int,
    reads: int,
    threads: int,
    memory: int | None = None,
    advice: str | None = None,
    fillers: int | None = None,
    delay_seconds: float = 0.0,
) -> dict[str, float]:
    """Each thread gathers its part of `reads` elements; see open_mapped for what they are gathered of."""
    parts = np.array_split(NumberFile(path, count).pick(reads, SEED), threads)
    taken = [np.zeros(len(part)) for part in parts]
    start = threading.Barrier(threads + 1)

    def gather(a: NDArray[np.float64], part: NDArray[np.int64], out: NDArray[np.float64]) -> None:
        start.wait()
        np.take(a, part, out=out, mode="clip")

    with open_mapped(path, memory, advice, fillers, delay_seconds) as a:
        workers = [threading.Thread(target=gather, args=(a, parts[number], taken[number])) for number in range(threads)]
        for worker in workers:
            worker.start()
        with meter:
            start.wait()
            for worker in workers:
                worker.join()
        del a
    return {"sum": sum(float(each.sum()) for each in taken)}

"""Polars' streaming sort, from Parquet to Parquet.

It spills when its own count of bytes passes a budget, by default 0.8 of the cgroup's memory. That count leaves out
some of what the cgroup counts, so here the budget is half. A smaller one is no remedy for a limit of few hundred MiB:
what is left out is larger. It spills to the device that the data lies on.
"""

from __future__ import annotations

import os

from harness.child import Meter
from peers.arrays import THREADS
from peers.numpy_sort import sync


def sort_polars(meter: Meter, path: str, out: str, limit: int) -> dict[str, float]:
    """Sorts the table at `path` into `out`, on the disk when measuring ends. Scratch stays beside `out`."""
    os.environ |= {
        "POLARS_MAX_THREADS": str(THREADS),
        "POLARS_OOC_MEMORY_BUDGET_MB": str(limit // 2 // 1_000_000),
        "POLARS_OOC_SPILL_DIR": f"{out}.scratch",
    }
    import polars

    with meter:
        polars.scan_parquet(path).sort("x").sink_parquet(out, compression="uncompressed", engine="streaming")
        sync(out)
    return {}

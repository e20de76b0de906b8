"""Cold sequential and random reads of a file for each page size: the table in docs/design.md.

    python benchmarks/page_size.py FILE

FILE holds float64 and is larger than the budget; each page size is read by a process of its own, the page cache dropped
before (needs root).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np

import umappy

BUDGET = "256MiB"
PAGE_SIZES = ("4KiB", "16KiB", "64KiB", "256KiB", "1MiB", "2MiB")
READS = 20_000


def measure(path: str, page_size: str) -> None:
    with umappy.Pager(BUDGET) as pager, umappy.umap(path, pager=pager, page_size=page_size) as region:
        a = np.frombuffer(region, np.float64)
        start = time.perf_counter()
        a.sum()
        rate = len(region) / (time.perf_counter() - start)
        indices = np.random.default_rng(0).integers(0, len(a), READS)
        start = time.perf_counter()
        a[indices].sum()
        latency = (time.perf_counter() - start) / READS
        print(f"| {page_size} | {rate / 1e9:.2f} | {latency * 1e6:.0f} |", flush=True)
        del a


def main() -> None:
    if len(sys.argv) == 3:
        measure(sys.argv[1], sys.argv[2])
        return
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for page_size in PAGE_SIZES:
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")
        subprocess.run([sys.executable, __file__, sys.argv[1], page_size], check=True)


if __name__ == "__main__":
    main()

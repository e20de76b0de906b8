"""Reads by Zipf's law: how many misses each policy has, against fifo's."""

from __future__ import annotations

import resource

import numpy as np
from numpy.typing import NDArray

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import value
from harness.number_file import compute_values
from harness.result import Result, Side, Target, compare, save
from harness.rounds import alternate
from peers.memmap import open_memmap
from rows.zstd_data import hash_each

EXPONENT = 1.1
TIMES = 10
"""The data, in budgets."""
MEMORY_MAX = 16 << 20
READS_PER_PAGE = 400
"""Reads for each 4 KiB page of the budget: what comes after the warm-up is a steady state."""
WARM_PART = 2
CHUNK = 1000
PAGE_ITEMS = 4096 // 8
SEED = 3
POLICIES = ("fifo", "auto", "second_chance", "s3fifo")


def make_trace(items: int, reads: int) -> NDArray[np.int64]:
    """Returns `reads` indices below `items`, a multiple of PAGE_ITEMS. Each rank lies in a page drawn for it by lot."""
    random = np.random.default_rng(SEED)
    ranks = np.empty(0, np.int64)
    while len(ranks) < reads:
        drawn = random.zipf(EXPONENT, reads) - 1
        ranks = np.concatenate([ranks, drawn[(drawn >= 0) & (drawn < items)]])
    ranks = ranks[:reads]
    lots = hash_each(ranks.astype(np.uint64)) >> np.uint64(16)
    return (lots % np.uint64(items)).astype(np.int64)


def split_trace(size: int, reads: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Returns the reads that warm up and those that count, CHUNK by CHUNK."""
    chunks = np.array_split(make_trace(size // 8, reads), max(1, reads // CHUNK))
    warm = len(chunks) // WARM_PART
    return chunks[:warm], chunks[warm:]


def read_umappy(meter: Meter, path: str, size: int, reads: int, memory: int, policy: str) -> dict[str, float]:
    warm, counted = split_trace(size, reads)
    with umappy.Pager(memory, policy=policy) as pager, umappy.umap(path, size, pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        total = sum(float(a[chunk].sum()) for chunk in warm)
        before = pager.stats()
        with meter:
            total += sum(float(a[chunk].sum()) for chunk in counted)
        after = pager.stats()
        del a
    return {"sum": total, "misses": after.fills - before.fills, "reads": sum(map(len, counted))}


def read_memmap(meter: Meter, path: str, size: int, reads: int, advice: str | None = None) -> dict[str, float]:
    """Its misses are the process's faults that took I/O; what it keeps is the rest of the cgroup."""
    warm, counted = split_trace(size, reads)
    a = open_memmap(path, advice=advice, size=size)
    total = sum(float(a[chunk].sum()) for chunk in warm)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    with meter:
        total += sum(float(a[chunk].sum()) for chunk in counted)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    return {"sum": total, "misses": after - before, "reads": sum(map(len, counted))}


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    numbers = bench.fast.numbers(bench.size)
    memory = min(MEMORY_MAX, bench.memory, numbers.size // TIMES) // 4096 * 4096
    size = TIMES * memory
    reads = READS_PER_PAGE * memory // 4096
    expected = {"sum": float(compute_values(make_trace(size // 8, reads)).sum())}
    contenders = {
        policy: bench.prepare(
            read_umappy,
            bench.fast,
            expected=expected,
            path=numbers.path,
            size=size,
            reads=reads,
            memory=memory,
            policy=policy,
        )
        for policy in POLICIES
    }
    rounds = alternate(contenders, 1)  # the counts hardly vary

    def side(name: str) -> Side:
        return Side(name, value("misses"), lambda count: f"{count:.0f} misses")

    return [
        compare(
            f"zipf({EXPONENT}), {policy}",
            "fast",
            rounds,
            side("fifo"),
            side(policy),
            save,
            Target("at least", 0.25, "%") if policy == "auto" else None,
        )
        for policy in POLICIES[1:]
    ]

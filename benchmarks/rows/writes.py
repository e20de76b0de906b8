"""Writes of single elements at random, then a flush; and how much goes to the device for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.errors import ContenderError
from harness.figures import describe_costs, item_side
from harness.number_file import NumberFile, compute_sum, compute_values
from harness.result import Result, Side, Target, compare, divide
from harness.rounds import Run, alternate
from harness.sample import Sample
from umappy.cli.cgroup import drop_page_cache

SEED = 2


def make_values(indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """What is written: a half more than what the file holds, still exact to add up."""
    return compute_values(indices) + 0.5


def write_umappy(meter: Meter, path: str, count: int, writes: int, memory: int) -> dict[str, float]:
    indices = NumberFile(path, count).pick(writes, SEED)
    values = make_values(indices)
    with umappy.Pager(memory) as pager, umappy.umap(path, mode="r+", pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        with meter:
            a[indices] = values
            region.flush()
        stats = pager.stats()
        del a
    return {"fills": stats.fills, "writes": stats.writes, "bytes_written": stats.bytes_written}


def write_memmap(meter: Meter, path: str, count: int, writes: int) -> dict[str, float]:
    indices = NumberFile(path, count).pick(writes, SEED)
    values = make_values(indices)
    a = np.memmap(path, np.float64, mode="r+")
    with meter:
        a[indices] = values
        a.flush()
    return {}


def check(run: Run, numbers: NumberFile, indices: NDArray[np.int64]) -> Run:
    """Looks after each run whether these elements and no others changed, and undoes it."""
    expected = compute_sum(numbers.count) + 0.5 * len(np.unique(indices))

    def checked() -> Sample:
        try:
            sample = run()
            drop_page_cache()
            total = numbers.read_sum()
            if total != expected:
                raise ContenderError(f"wrong result: the file's sum is {total!r}, not {expected!r}")
        except ContenderError:
            numbers.write()
            raise
        numbers.restore(indices)
        return sample

    return checked


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    numbers = bench.fast.numbers(bench.size)
    indices = numbers.pick(bench.reads, SEED)
    common: dict[str, Any] = {"path": numbers.path, "count": numbers.count, "writes": bench.reads}
    contenders = {
        "umappy": check(bench.prepare(write_umappy, bench.fast, memory=bench.memory, **common), numbers, indices),
        "np.memmap": check(bench.prepare(write_memmap, bench.fast, **common), numbers, indices),
    }
    rounds = alternate(contenders, bench.rounds)
    notes = describe_costs(rounds, *contenders)
    peer, ours = item_side("np.memmap", bench.reads), item_side("umappy", bench.reads)

    def written(sample: Sample) -> float:
        return (sample.device_bytes_written or 0) / bench.reads

    def describe(each: float) -> str:
        return f"{each / 1024:.1f} KiB"

    work = f"{bench.reads} random writes of 8 bytes, flush"
    return [
        compare(work, "fast", rounds, peer, ours, divide, Target("at least", 1.5), notes=notes),
        compare(
            "bytes written for each",
            "fast",
            rounds,
            Side("np.memmap", written, describe),
            Side("umappy", written, describe),
            lambda _, each: each / 1024,
            Target("at most", 64, " KiB"),
        ),
    ]

"""The sum of twice the budget, again and again: what LRU and FIFO never hit."""

from __future__ import annotations

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs, seconds_side
from harness.number_file import compute_sum
from harness.result import Result, Target, compare, divide
from harness.rounds import alternate
from peers.memmap import sum_memmap

PASSES = 10


def loop_umappy(meter: Meter, path: str, size: int, memory: int, policy: str) -> dict[str, float]:
    with umappy.Pager(memory, policy=policy) as pager, umappy.umap(path, size, pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        with meter:
            total = sum(float(a.sum()) for _ in range(PASSES))
        stats = pager.stats()
        del a
    return {"sum": total, "fills": stats.fills, "bytes_read": stats.bytes_read}


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    numbers = bench.fast.numbers(bench.size)
    size = min(2 * bench.memory, numbers.size)
    expected = {"sum": PASSES * compute_sum(size // 8)}
    common = {"path": numbers.path, "size": size}
    contenders = {
        "umappy": bench.prepare(
            loop_umappy, bench.fast, expected=expected, memory=bench.memory, policy="auto", **common
        ),
        "np.memmap": bench.prepare(sum_memmap, bench.fast, expected=expected, passes=PASSES, **common),
    }
    rounds = alternate(contenders, bench.rounds)
    notes = describe_costs(rounds, *contenders)
    return [
        compare(
            f"loop over 2x the budget, {PASSES} rounds",
            "fast",
            rounds,
            seconds_side("np.memmap"),
            seconds_side("umappy"),
            divide,
            Target("at least", 2),
            notes=notes,
        )
    ]

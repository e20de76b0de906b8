"""`a[indices].sum()` of uniformly random elements, which fault one by one, without a hint.

What the lack of the hint costs, by read-ahead that guesses wrong, is a row of its own; so is the least that answering
faults in user space costs.
"""

from __future__ import annotations

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs, item_side
from harness.number_file import NumberFile, compute_values
from harness.result import Result, Target, compare, divide
from harness.rounds import alternate
from peers.bare_faults import build_bare_faults, gather_bare
from peers.memmap import gather_memmap

SEED = 1


def gather_umappy(
    meter: Meter, path: str, count: int, reads: int, memory: int, hint: str | None = None, warm: bool = False
) -> dict[str, float]:
    """`warm`: after a pass over all, before the hint."""
    indices = NumberFile(path, count).pick(reads, SEED)
    with umappy.Pager(memory) as pager, umappy.umap(path, pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        if warm:
            a.sum()
        if hint is not None:
            region.advise(hint)
        before = pager.stats()
        with meter:
            total = a[indices].sum()
        after = pager.stats()
        del a
    return {"sum": total, "fills": after.fills - before.fills, "faults": after.read_faults - before.read_faults}


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    numbers = bench.fast.numbers(bench.size)
    common = {"path": numbers.path, "count": numbers.count, "reads": bench.reads}
    expected = {"sum": float(compute_values(numbers.pick(bench.reads, SEED)).sum())}
    contenders = {
        "umappy": bench.prepare(gather_umappy, bench.fast, expected=expected, memory=bench.memory, **common),
        "hinted": bench.prepare(
            gather_umappy, bench.fast, expected=expected, memory=bench.memory, hint="random", **common
        ),
        "np.memmap": bench.prepare(gather_memmap, bench.fast, expected=expected, seed=SEED, **common),
        "MADV_RANDOM": bench.prepare(
            gather_memmap, bench.fast, expected=expected, seed=SEED, advice="random", **common
        ),
    }
    with build_bare_faults() as library:
        contenders["bare"] = bench.prepare(
            gather_bare, bench.fast, expected=expected, seed=SEED, library=library, **common
        )
        rounds = alternate(contenders, bench.rounds)
    ours = item_side("umappy", bench.reads)
    notes = describe_costs(rounds, *contenders)
    work = f"{bench.reads} random reads, no hint"
    return [
        compare(
            work, "fast", rounds, item_side("np.memmap", bench.reads), ours, divide, Target("at least", 4), notes=notes
        ),
        compare(
            work,
            "fast",
            rounds,
            item_side("MADV_RANDOM", bench.reads),
            ours,
            divide,
            Target("at least", 0.65),
            against="np.memmap, MADV_RANDOM",
        ),
        compare(
            f"{bench.reads} random reads by a bare uffd loop",
            "fast",
            rounds,
            item_side("MADV_RANDOM", bench.reads),
            item_side("bare", bench.reads),
            divide,
            None,
            against="np.memmap, MADV_RANDOM",
        ),
        compare(work, "fast", rounds, item_side("bare", bench.reads), ours, divide, None, against="a bare uffd loop"),
        compare(
            work,
            "fast",
            rounds,
            item_side("hinted", bench.reads),
            ours,
            divide,
            None,
            against="umappy, advise('random')",
        ),
    ]

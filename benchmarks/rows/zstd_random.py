"""Reads of 64 KiB at random places of a cold compressed file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs, item_side
from harness.result import Result, Target, compare, divide
from harness.rounds import alternate
from rows.zstd_data import KINDS, MODULUS, PAGE, DataFile, compute, open_peer, reduce

SEED = 3
COUNT = PAGE // 8


def pick(size: int, reads: int) -> NDArray[np.int64]:
    """Where they begin, in elements: at pages, which are the blocks of blosc2, too."""
    return COUNT * np.random.default_rng(SEED).integers(0, size // PAGE, reads)


def compute_sum(kind: str, size: int, reads: int) -> float:
    """What reading them must give."""
    return float(sum(reduce(compute(kind, int(s), int(s) + COUNT)) for s in pick(size, reads)) % MODULUS)


def read_umappy(meter: Meter, path: str, size: int, reads: int, memory: int) -> dict[str, float]:
    starts, total = pick(size, reads), 0
    with umappy.Pager(memory) as pager, umappy.umap(path, pager=pager, page_size=PAGE) as region:
        region.advise("random")
        a = np.frombuffer(region, np.uint64)
        with meter:
            for start in starts:
                total += reduce(a[start : start + COUNT])
        del a
    return {"sum": total % MODULUS}


def read_peer(meter: Meter, form: str, path: str, size: int, reads: int) -> dict[str, float]:
    array, starts, total = open_peer(form, path), pick(size, reads), 0
    with meter:
        for start in starts:
            total += reduce(array[int(start) : int(start) + COUNT])
    return {"sum": total % MODULUS}


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    results = []
    for kind in KINDS:
        data = DataFile(bench.fast, kind, bench.size)
        reads = max(1, bench.reads // 10)
        expected = {"sum": compute_sum(kind, bench.size, reads)}
        common = {"size": bench.size, "reads": reads}
        contenders = {
            "umappy": bench.prepare(
                read_umappy, bench.fast, expected=expected, path=data.find("umappy.zst"), memory=bench.memory, **common
            ),
        }
        for peer in ("blosc2", "zarr"):
            contenders[peer] = bench.prepare(
                read_peer, bench.fast, expected=expected, form=peer, path=data.find(peer), **common
            )
        rounds = alternate(contenders, bench.rounds)
        notes = describe_costs(rounds, *contenders)
        results += [
            compare(
                f"{reads} random reads of 64 KiB, {kind}",
                "fast",
                rounds,
                item_side(peer, reads),
                item_side("umappy", reads),
                divide,
                Target("at least", 2),
                notes=notes if peer == "blosc2" else (),
            )
            for peer in ("blosc2", "zarr")
        ]
    return results

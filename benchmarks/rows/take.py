"""`umappy.take` of random elements: against the device, against np.memmap, and through a slow store."""

from __future__ import annotations

import mmap
import struct

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs, item_side, value
from harness.number_file import NumberFile, compute_values
from harness.place import Place
from harness.result import Result, Side, Target, compare, divide, divide_rates
from harness.rounds import alternate
from peers.memmap import gather_memmap
from rows.random_reads import SEED
from umappy.stores.native import NativeStore
from umappy.stores.wrappers import DelayStore

BLOCK = 4096
DELAY_SECONDS = 1e-3
SINGLE_READS = 2000
"""One after another: enough to know what one takes."""
MANY_FILLERS = 64


def take_umappy(
    meter: Meter, path: str, count: int, reads: int, memory: int, delay: bool = False, fillers: int | None = None
) -> dict[str, float]:
    indices = NumberFile(path, count).pick(reads, SEED)
    store: NativeStore = umappy.FileStore(path)
    if delay:
        store = DelayStore(store, DELAY_SECONDS, op="read")
    with umappy.Pager(memory, fillers=fillers) as pager, umappy.umap(store, pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        with meter:
            taken = umappy.take(a, indices)
        stats = pager.stats()
        del a
    return {"sum": taken.sum(), "fills": stats.fills, "store_reads": stats.store_reads, "bytes": stats.bytes_read}


def read_one_by_one(meter: Meter, path: str, count: int, reads: int) -> dict[str, float]:
    """The same elements through the same store, each when the one before is there."""
    indices = NumberFile(path, count).pick(reads, SEED).tolist()
    buffer = mmap.mmap(-1, BLOCK)
    total = 0.0
    with DelayStore(umappy.FileStore(path), DELAY_SECONDS, op="read") as store, meter:
        for index in indices:
            start = 8 * index // BLOCK * BLOCK
            store.read_into(start, memoryview(buffer)[: min(BLOCK, 8 * count - start)])
            total += struct.unpack_from("d", buffer, 8 * index - start)[0]
    return {"sum": total}


def measure(bench: Bench) -> list[Result]:
    results = []
    for place in bench.places:
        results += measure_place(bench, place)
    if bench.places:
        results += measure_slow_store(bench, bench.fast or bench.places[0])
    return results


def measure_place(bench: Bench, place: Place) -> list[Result]:
    numbers = place.numbers(bench.size)
    indices = numbers.pick(bench.reads, SEED)
    blocks = len(np.unique(8 * indices // BLOCK))
    common = {"path": numbers.path, "count": numbers.count, "reads": bench.reads}
    expected = {"sum": float(compute_values(indices).sum())}
    contenders = {
        "umappy.take": bench.prepare(take_umappy, place, expected=expected, memory=bench.memory, **common),
        "device": bench.prepare_limits(place),
    }
    if place.name == "fast":
        contenders["MADV_RANDOM"] = bench.prepare(
            gather_memmap, place, expected=expected, seed=SEED, advice="random", **common
        )
    rounds = alternate(contenders, bench.rounds)
    work = f"take of {bench.reads}"
    device = Side("device", value("random"), lambda rate: f"{rate / 1e3:.1f} k/s")
    ours = Side("umappy.take", lambda sample: blocks / sample.seconds, device.format)
    results = [
        compare(
            work,
            place.name,
            rounds,
            device,
            ours,
            divide_rates,
            Target("at least", 0.7),
            against="best direct 4 KiB random",
            notes=describe_costs(rounds, "umappy.take"),
        )
    ]
    if place.name == "fast":
        results.append(
            compare(
                work,
                place.name,
                rounds,
                item_side("MADV_RANDOM", bench.reads),
                item_side("umappy.take", bench.reads),
                divide,
                Target("at least", 1.5),
                against="np.memmap, MADV_RANDOM",
            )
        )
    return results


def measure_slow_store(bench: Bench, place: Place) -> list[Result]:
    """With the fillers a pager has by default, and, to see what they limit, with many."""
    numbers = place.numbers(bench.size)
    singles = min(SINGLE_READS, bench.reads)
    common = {"path": numbers.path, "count": numbers.count}
    taken = common | {"reads": bench.reads, "memory": bench.memory, "delay": True}
    expected = {"sum": float(compute_values(numbers.pick(bench.reads, SEED)).sum())}
    single = {"sum": float(compute_values(numbers.pick(singles, SEED)).sum())}
    contenders = {
        "umappy.take": bench.prepare(take_umappy, place, expected=expected, **taken),
        "many fillers": bench.prepare(take_umappy, place, expected=expected, fillers=MANY_FILLERS, **taken),
        "one by one": bench.prepare(read_one_by_one, place, expected=single, reads=singles, **common),
    }
    rounds = alternate(contenders, bench.rounds)
    peer = item_side("one by one", singles)
    work = "take through a store with 1 ms latency"
    return [
        compare(
            name_of_work,
            place.name,
            rounds,
            peer,
            item_side(name, bench.reads),
            divide,
            target,
            against="one read after another",
        )
        for name, name_of_work, target in (
            ("umappy.take", work, Target("at least", 20)),
            ("many fillers", f"{work}, {MANY_FILLERS} fillers", None),
        )
    ]

"""The sum of a cold file, one thread, no hint; and what the paging of it costs in CPU.

The CPU is the process's own: a loop device works in threads of the kernel, which count as nobody's. The rows without a
target are the limit: a program that reads by hand to as much memory (peers/bare.py).
"""

from __future__ import annotations

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import cpu_per_gb, describe_costs, rate_side, value
from harness.number_file import compute_sum
from harness.place import Place
from harness.result import Result, Side, Target, compare, divide_rates, subtract
from harness.rounds import Rounds, alternate
from peers.bare import sum_bare
from peers.memmap import sum_memmap

RESIDENT_PASSES = 8
WORK = "sequential sum"
BARE = {"bare reader": False, "bare reader, huge pages": True}


def sum_umappy(meter: Meter, path: str, memory: int) -> dict[str, float]:
    with umappy.Pager(memory) as pager, umappy.umap(path, pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        with meter:
            total = a.sum()
        stats = pager.stats()
        del a
    return {"sum": total, "fills": stats.fills, "faults": stats.read_faults, "peak_used": stats.peak_used}


def sum_resident(meter: Meter, memory: int) -> dict[str, float]:
    """As much as stays resident of the file: an array that fits the processor's caches would be added up faster."""
    a = np.full(memory // 8, 3.0)
    with meter:
        total = sum(float(a.sum()) for _ in range(RESIDENT_PASSES))
    return {"sum": total}


def measure(bench: Bench) -> list[Result]:
    """On the fast device np.memmap is the one to beat, on the machine's disk the disk itself."""
    results = []
    for place in bench.places:
        rounds = run_rounds(bench, place)
        ours = rate_side("umappy", bench.size)
        is_fast = place.name == "fast"
        if is_fast:
            results.append(
                compare(
                    WORK,
                    place.name,
                    rounds,
                    rate_side("np.memmap", bench.size),
                    ours,
                    divide_rates,
                    Target("at least", 4.5),
                )
            )
        results.append(
            compare(
                WORK,
                place.name,
                rounds,
                Side("device", value("sequential"), ours.format),
                ours,
                divide_rates,
                None if is_fast else Target("at least", 0.9),
                against="best direct rate",
                notes=describe_costs(rounds, "umappy", "np.memmap"),
            )
        )
        results.append(
            compare(
                WORK,
                place.name,
                rounds,
                Side("device", value("wide"), ours.format),
                ours,
                divide_rates,
                None,
                against="direct rate to as much memory",
            )
        )
        results += [
            compare(WORK, place.name, rounds, rate_side(bare, bench.size), ours, divide_rates, None) for bare in BARE
        ]
        results += compare_cpu(bench, place, rounds)
    return results


def run_rounds(bench: Bench, place: Place) -> Rounds:
    numbers = place.numbers(bench.size)
    expected = {"sum": compute_sum(numbers.count)}
    contenders = {
        "umappy": bench.prepare(sum_umappy, place, expected=expected, path=numbers.path, memory=bench.memory),
        "device": bench.prepare_limits(place, bench.memory),
        "resident": bench.prepare(
            sum_resident, expected={"sum": 3.0 * RESIDENT_PASSES * (bench.memory // 8)}, memory=bench.memory
        ),
    }
    for name, is_huge in BARE.items():
        contenders[name] = bench.prepare(
            sum_bare, place, expected=expected, path=numbers.path, memory=bench.memory, is_huge=is_huge
        )
    if place.name == "fast":
        contenders["np.memmap"] = bench.prepare(sum_memmap, place, expected=expected, path=numbers.path)
    return alternate(contenders, bench.rounds)


def compare_cpu(bench: Bench, place: Place, rounds: Rounds) -> list[Result]:
    def describe(each: float) -> str:
        return f"{each:.3f} s/GB"

    work, ours = "CPU of sequential sum", Side("umappy", cpu_per_gb(bench.size), describe)
    resident = Side("resident", cpu_per_gb(RESIDENT_PASSES * bench.memory), describe)
    target = Target("at most", 0.2, " s/GB")
    against = "sum of a resident array"
    results = [compare(work, place.name, rounds, resident, ours, subtract, target, against=against)]
    for bare in BARE:
        peer = Side(bare, cpu_per_gb(bench.size), describe)
        results.append(compare(work, place.name, rounds, peer, ours, subtract, None))
    return results

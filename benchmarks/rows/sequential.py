"""The sum of a cold file, one thread, no hint; and what the paging of it costs in CPU."""

from __future__ import annotations

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import cpu_per_gb, describe_cost, rate_side, value
from harness.number_file import compute_sum
from harness.place import Place
from harness.result import Result, Side, Target, compare, divide_rates, subtract
from harness.rounds import Rounds, alternate
from harness.sample import Sample

RESIDENT_BYTES = 32 << 20
RESIDENT_PASSES = 64


def sum_umappy(meter: Meter, path: str, memory: int) -> dict[str, float]:
    with umappy.Pager(memory) as pager, umappy.umap(path, pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        with meter:
            total = a.sum()
        stats = pager.stats()
        del a
    return {"sum": total, "fills": stats.fills, "faults": stats.read_faults, "peak_used": stats.peak_used}


def sum_memmap(meter: Meter, path: str) -> dict[str, float]:
    a = np.memmap(path, np.float64, mode="r")
    with meter:
        total = a.sum()
    return {"sum": total}


def sum_resident(meter: Meter) -> dict[str, float]:
    a = np.full(RESIDENT_BYTES // 8, 3.0)
    with meter:
        total = sum(float(a.sum()) for _ in range(RESIDENT_PASSES))
    return {"sum": total}


def measure(bench: Bench) -> list[Result]:
    results = []
    for place in bench.places:
        rounds = run_rounds(bench, place)
        ours = rate_side("umappy", bench.size)
        device = Side("device", value("sequential"), lambda rate: f"{rate / 1e9:.2f} GB/s")
        notes = tuple(describe_cost(name, samples) for name, samples in rounds.samples.items() if has_cost(samples))
        work = "sequential sum"
        if place.name == "fast":
            peer, label = rate_side("np.memmap", bench.size), "np.memmap"
            results.append(
                compare(work, place.name, rounds, peer, ours, divide_rates, Target("at least", 4.5), notes=notes)
            )
            target = None
        else:
            target = Target("at least", 0.9)
        label = "best direct rate"
        results.append(compare(work, place.name, rounds, device, ours, divide_rates, target, against=label))
        results.append(compare_cpu(bench, place, rounds))
    return results


def run_rounds(bench: Bench, place: Place) -> Rounds:
    numbers = place.numbers(bench.size)
    expected = {"sum": compute_sum(numbers.count)}
    contenders = {
        "umappy": bench.prepare(sum_umappy, place, expected=expected, path=numbers.path, memory=bench.memory),
        "device": bench.prepare_limits(place),
        "resident": bench.prepare(sum_resident, expected={"sum": 3.0 * RESIDENT_PASSES * (RESIDENT_BYTES // 8)}),
    }
    if place.name == "fast":
        contenders["np.memmap"] = bench.prepare(sum_memmap, place, expected=expected, path=numbers.path)
    return alternate(contenders, bench.rounds)


def compare_cpu(bench: Bench, place: Place, rounds: Rounds) -> Result:
    def describe(each: float) -> str:
        return f"{each:.3f} s/GB"

    return compare(
        "CPU of sequential sum",
        place.name,
        rounds,
        Side("resident", cpu_per_gb(RESIDENT_PASSES * RESIDENT_BYTES), describe),
        Side("umappy", cpu_per_gb(bench.size), describe),
        subtract,
        Target("at most", 0.2, " s/GB"),
        against="sum of a resident array",
    )


def has_cost(samples: list[Sample]) -> bool:
    return bool(samples and samples[-1].device_bytes_read is not None)

"""`a += 1; flush()` over a whole file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.errors import ContenderError
from harness.figures import describe_costs, rate_side
from harness.number_file import compute_sum
from harness.result import Result, Target, compare, divide_rates
from harness.rounds import Run, alternate
from harness.sample import Sample
from peers.memmap import add_memmap
from umappy.cli.cgroup import drop_page_cache


def add_umappy(meter: Meter, path: str, memory: int) -> dict[str, float]:
    with umappy.Pager(memory) as pager, umappy.umap(path, mode="r+", pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        with meter:
            a += 1
            region.flush()
        stats = pager.stats()
        del a
    return {"fills": stats.fills, "protect_faults": stats.protect_faults, "bytes_written": stats.bytes_written}


@dataclass
class Ledger:
    """Keeps count of what was added to `count` numbers, and looks after each run whether it was."""

    count: int
    read_sum: Callable[[], float]
    restore: Callable[[], None]
    times: int = 0

    def check(self, run: Run) -> Run:
        def checked() -> Sample:
            try:
                sample = run()
                self.times += 1
                drop_page_cache()
                expected = compute_sum(self.count) + self.times * self.count
                if (total := self.read_sum()) != expected:
                    raise ContenderError(f"wrong result: the file's sum is {total!r}, not {expected!r}")
            except ContenderError:
                self.restore()
                self.times = 0
                raise
            return sample

        return checked


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    numbers = bench.fast.numbers(bench.size)
    ledger = Ledger(numbers.count, numbers.read_sum, numbers.write)
    contenders = {
        "umappy": ledger.check(bench.prepare(add_umappy, bench.fast, path=numbers.path, memory=bench.memory)),
        "np.memmap": ledger.check(bench.prepare(add_memmap, bench.fast, path=numbers.path)),
    }
    try:
        rounds = alternate(contenders, bench.rounds)
    finally:
        numbers.write()
    notes = describe_costs(rounds, *contenders)
    peer, ours = rate_side("np.memmap", bench.size), rate_side("umappy", bench.size)
    return [compare("a += 1; flush()", "fast", rounds, peer, ours, divide_rates, Target("at least", 2.5), notes=notes)]

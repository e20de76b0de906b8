"""The sum of an export through a region, against nbdcopy, which throws away what it reads."""

from __future__ import annotations

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs, rate_side
from harness.number_file import compute_sum
from harness.result import Result, Target, compare, divide_rates
from harness.rounds import alternate
from rows.nbd_server import CONNECTIONS, DEPTH, PAGE, open_server


def sum_export(meter: Meter, uri: str, memory: int) -> dict[str, float]:
    with umappy.Pager(memory) as pager, umappy.umap(uri, pager=pager) as region:
        a = np.frombuffer(region, np.float64)
        with meter:
            total = a.sum()
        del a
    return {"sum": total}


def measure(bench: Bench) -> list[Result]:
    with open_server(bench) as server:
        contenders = {
            "umappy": bench.prepare(
                sum_export, expected={"sum": compute_sum(bench.size // 8)}, uri=server.uri, memory=bench.memory
            ),
            "nbdcopy": server.prepare_nbdcopy(),
            "libnbd": server.prepare_libnbd("sequential", bench.size // PAGE, connections=CONNECTIONS, depth=DEPTH),
        }
        rounds = alternate(contenders, bench.rounds)
    return [
        compare(
            "sequential sum",
            "memory",
            rounds,
            rate_side(peer, bench.size),
            rate_side("umappy", bench.size),
            divide_rates,
            target,
            against=against,
            notes=describe_costs(rounds, "umappy"),
        )
        for peer, target, against in (
            ("nbdcopy", Target("at least", 0.8), "nbdcopy to null:"),
            ("libnbd", None, f"libnbd, {CONNECTIONS} connections, {DEPTH} reads of 64 KiB in flight"),
        )
    ]

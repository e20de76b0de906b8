"""`umappy.take` of random pages of 64 KiB, against libnbd's asynchronous API; both to memory that is there already."""

from __future__ import annotations

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs
from harness.number_file import compute_values
from harness.result import Result, Side, Target, compare, divide_rates
from harness.rounds import alternate
from rows.nbd_server import CONNECTIONS, DEPTH, PAGE, open_server

SEED = 7


def take_pages(meter: Meter, uri: str, pages: int, reads: int, memory: int) -> dict[str, float]:
    indices = np.random.default_rng(SEED).integers(0, pages, reads)
    out = np.full((reads, PAGE // 8), 1.0)
    with umappy.Pager(memory) as pager, umappy.umap(uri, pager=pager) as region:
        rows = np.frombuffer(region, np.float64)[: pages * PAGE // 8].reshape(pages, PAGE // 8)
        with meter:
            umappy.take(rows, indices, axis=0, out=out)
        del rows
    return {"sum": out[:, 0].sum()}


def measure(bench: Bench) -> list[Result]:
    with open_server(bench) as server:
        indices = np.random.default_rng(SEED).integers(0, server.pages, bench.reads)
        expected = {"sum": float(compute_values(indices * (PAGE // 8)).sum())}
        contenders = {
            "umappy.take": bench.prepare(
                take_pages,
                expected=expected,
                uri=server.uri,
                pages=server.pages,
                reads=bench.reads,
                memory=bench.memory // 2,
            ),
            **{
                f"libnbd x{count}": server.prepare_libnbd("random", bench.reads, connections=count, depth=DEPTH)
                for count in (1, CONNECTIONS)
            },
        }
        rounds = alternate(contenders, bench.rounds)

    def side(name: str) -> Side:
        return Side(name, lambda sample: bench.reads / sample.seconds, lambda rate: f"{rate / 1e3:.1f} k/s")

    return [
        compare(
            f"take of {bench.reads} pages of 64 KiB",
            "memory",
            rounds,
            side(f"libnbd x{count}"),
            side("umappy.take"),
            divide_rates,
            Target("at least", 0.8),
            against=f"libnbd, connections: {count}, {DEPTH} in flight",
            notes=describe_costs(rounds, "umappy.take"),
        )
        for count in (1, CONNECTIONS)
    ]

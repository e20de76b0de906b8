"""A server a millisecond away: what many reads in flight make of it, against one after another."""

from __future__ import annotations

import numpy as np

from harness.bench import Bench
from harness.figures import item_side
from harness.number_file import compute_sum, compute_values
from harness.result import Result, Target, compare, divide
from harness.rounds import alternate
from rows.nbd_random import SEED, take_pages
from rows.nbd_sequential import sum_export
from rows.nbd_server import CONNECTIONS, DEPTH, PAGE, open_server

SINGLES = 1000
"""Reads of the client that has one in flight: enough to know what one takes."""


def measure(bench: Bench) -> list[Result]:
    with open_server(bench, "delay", "delay-read=1ms") as server:
        pages = server.pages
        indices = np.random.default_rng(SEED).integers(0, pages, bench.reads)
        contenders = {
            "take": bench.prepare(
                take_pages,
                expected={"sum": float(compute_values(indices * (PAGE // 8)).sum())},
                uri=server.uri,
                pages=pages,
                reads=bench.reads,
                memory=bench.memory // 2,
            ),
            "sum": bench.prepare(
                sum_export, expected={"sum": compute_sum(bench.size // 8)}, uri=server.uri, memory=bench.memory
            ),
            "one by one": server.prepare_libnbd("single", SINGLES),
            "libnbd": server.prepare_libnbd("random", bench.reads, connections=CONNECTIONS, depth=DEPTH),
        }
        rounds = alternate(contenders, bench.rounds)
    counts = {"take": bench.reads, "sum": pages, "libnbd": bench.reads}
    works = {
        "take": (f"take of {bench.reads} pages of 64 KiB, 1 ms away", Target("at least", 20)),
        "sum": ("sequential sum, 1 ms away, a 64 KiB", Target("at least", 20)),
        "libnbd": (f"libnbd, {CONNECTIONS} connections, {DEPTH} in flight, 1 ms away", None),
    }
    return [
        compare(
            work,
            "memory",
            rounds,
            item_side("one by one", SINGLES),
            item_side(name, counts[name]),
            divide,
            target,
            against="libnbd, one read after another",
        )
        for name, (work, target) in works.items()
    ]

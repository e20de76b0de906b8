"""One page of 64 KiB after another: what a fault takes, less what umappy's own part of a fault does.

That part is what a fault on a file in memory takes longer than reading the same from its store.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import value
from harness.result import Result, Side, Target, compare
from harness.rounds import alternate
from harness.sample import Sample
from rows.nbd_server import PAGE, open_server
from umappy.stores.native import NativeStore

SEED = 9
COUNT = 2000


def time_each(call: Callable[[int], object], offsets: Sequence[int]) -> float:
    """The median of the seconds of a call."""
    took = []
    for offset in offsets:
        start = time.perf_counter()
        call(offset)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def read_pages(store: NativeStore, offsets: Sequence[int]) -> float:
    buffer = bytearray(PAGE)
    with store:
        return time_each(lambda offset: store.read_into(offset, buffer), offsets)


def touch_pages(store: NativeStore, offsets: Sequence[int], memory: int) -> float:
    with (
        umappy.Pager(memory) as pager,
        umappy.umap(store, pager=pager, page_size=PAGE, readahead=False) as region,
    ):
        a = np.frombuffer(region, np.uint8)
        took = time_each(a.__getitem__, offsets)
        del a
    return took


def read_singly(meter: Meter, uri: str, path: str, pages: int, memory: int) -> dict[str, float]:
    offsets = (np.random.default_rng(SEED).permutation(pages)[:COUNT] * PAGE).tolist()
    with meter:
        fault = touch_pages(umappy.NbdStore(uri, connections=1), offsets, memory)
    return {
        "fault": fault,
        "read": read_pages(umappy.NbdStore(uri, connections=1), offsets),
        "file_fault": touch_pages(umappy.FileStore(path, direct=False), offsets, memory),
        "file_read": read_pages(umappy.FileStore(path, direct=False), offsets),
    }


def own_part(sample: Sample) -> float:
    return sample.values["file_fault"] - sample.values["file_read"]


def measure(bench: Bench) -> list[Result]:
    with open_server(bench) as server:
        contenders = {
            "umappy": bench.prepare(
                read_singly, uri=server.uri, path=server.numbers.path, pages=server.pages, memory=bench.memory
            ),
            "libnbd": server.prepare_libnbd("single", min(COUNT, server.pages)),
        }
        rounds = alternate(contenders, bench.rounds)

    def describe(each: float) -> str:
        return f"{each * 1e6:.1f} us"

    own = statistics.median(rounds.collect("umappy", own_part))
    works = (
        (
            "fault on 64 KiB, less our own part",
            Side("umappy", lambda sample: sample.values["fault"] - own_part(sample), describe),
            Target("at most", 1.3),
            (f"our own part of a fault: {describe(own)}",),
        ),
        ("64 KiB read from the store, by Python", Side("umappy", value("read"), describe), None, ()),
    )
    return [
        compare(
            work,
            "memory",
            rounds,
            Side("libnbd", value("median"), describe),
            side,
            lambda peer, ours: ours / peer,
            target,
            against="libnbd, nbd_pread",
            notes=notes,
        )
        for work, side, target, notes in works
    ]

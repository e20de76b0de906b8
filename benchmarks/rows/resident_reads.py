"""Reads of pages that are in memory, while another region of the pager evicts and reads ahead.

A thread adds up the same bytes again and again; another streams through a region much larger than the budget. The peer
reads an array of numpy's own beside the same stream. Two more runs go without the stream.

The target is on pages that stay resident, which those of the region do with policy="s3fifo". With "auto" some do not:
of each of its three contenders' pages, a 32nd of all, those of the two that lose are missed now and then.
"""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import value
from harness.number_file import compute_range, compute_sum
from harness.result import Result, Side, Target, compare, divide_rates
from harness.rounds import alternate

SLICE_MAX = 64 << 20
CHUNK = 1 << 20
"""Elements of the stream between two looks whether to stop."""
WARM_SECONDS = 0.5
SECONDS = 3.0


class Stream:
    """Adds up `b` from one end to the other, again and again, in a thread, while the block runs."""

    def __init__(self, b: NDArray[np.float64]) -> None:
        self.bytes_read = 0
        self._b = b
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        del self._b

    def _run(self) -> None:
        b, at = self._b, 0
        while not self._stop.is_set():
            b[at : at + CHUNK].sum()
            self.bytes_read += b[at : at + CHUNK].nbytes
            at = (at + CHUNK) % (len(b) // CHUNK * CHUNK or len(b))


def read_again_and_again(
    meter: Meter, path: str, size: int, memory: int, paged: bool, load: bool, policy: str = "s3fifo"
) -> dict[str, float]:
    """`size` is the bytes read again and again: of a region where `paged`, else of numpy's own."""
    with (
        umappy.Pager(memory, policy=policy) as pager,
        umappy.umap(path, size, pager=pager) as small,
        umappy.umap(path, pager=pager) as large,
    ):
        a = np.frombuffer(small, np.float64) if paged else compute_range(0, size // 8)
        b = np.frombuffer(large, np.float64)
        if load:
            with Stream(b) as stream:
                figures = _read(meter, a, small)
                figures["stream_bytes"] = stream.bytes_read
            del stream
        else:
            figures = _read(meter, a, small)
        del a, b
    return figures


def _read(meter: Meter, a: NDArray[np.float64], region: umappy.Region) -> dict[str, float]:
    expected, passes, wrong = a.sum(), 0, 0
    started = time.perf_counter()
    while time.perf_counter() - started < WARM_SECONDS:  # what nobody reads is not kept
        a.sum()
    fills = region.stats().fills
    with meter:
        started = time.perf_counter()
        while (took := time.perf_counter() - started) < SECONDS:
            wrong += a.sum() != expected
            passes += 1
    return {
        "sum": expected,
        "wrong": wrong,
        "bytes_per_second": passes * a.nbytes / took,
        "refills": region.stats().fills - fills,
    }


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    numbers = bench.fast.numbers(bench.size)
    size = min(SLICE_MAX, bench.memory // 4) // 4096 * 4096
    # numpy's own array is beside the budget: everybody gets as much less.
    common = {"path": numbers.path, "size": size, "memory": bench.memory - size}
    expected = {"sum": compute_sum(size // 8), "wrong": 0.0}
    contenders = {
        name: bench.prepare(
            read_again_and_again, bench.fast, expected=expected, paged=paged, load=load, policy=policy, **common
        )
        for name, paged, load, policy in (
            ("region, load", True, True, "s3fifo"),
            ("auto, load", True, True, "auto"),
            ("array, load", False, True, "s3fifo"),
            ("region", True, False, "auto"),
            ("array", False, False, "auto"),
        )
    }
    rounds = alternate(contenders, bench.rounds)

    def side(name: str) -> Side:
        return Side(name, value("bytes_per_second"), lambda rate: f"{rate / 1e9:.2f} GB/s")

    def describe(name: str) -> tuple[str, ...]:
        if not rounds.samples[name]:
            return ()
        refills, stream = (rounds.median(name, value(figure)) for figure in ("refills", "stream_bytes"))
        return (
            f"{name}: {refills:.0f} pages of the region were evicted and filled again, {stream / 1e9:.2f} GB streamed",
        )

    return [
        compare(
            "reads of resident pages under load",
            "fast",
            rounds,
            side("array, load"),
            side("region, load"),
            divide_rates,
            Target("at least", 0.95),
            against="numpy array under the same load",
            notes=describe("region, load"),
        ),
        compare(
            "the same with policy auto",
            "fast",
            rounds,
            side("array, load"),
            side("auto, load"),
            divide_rates,
            None,
            against="numpy array under the same load",
            notes=describe("auto, load"),
        ),
        compare(
            "the same without load", "fast", rounds, side("array"), side("region"), divide_rates, None,
            against="numpy array",
        ),
    ]  # fmt: skip

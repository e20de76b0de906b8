"""`umappy.take` of random elements of a cold file: beside the device and peers, and through a slow store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_values
from harness.place import Place
from harness.rounds import Run
from peers import arrays, memmap
from rows.take import BLOCK, SEED, SINGLE_READS, read_one_by_one, take_umappy

FORMS = ("blosc2", "zarr")
"""Those that gather by themselves."""
CONTENDERS = ("umappy", "np.memmap MADV_RANDOM", *FORMS, "device")
SLOW = ("umappy", "one by one")


def prepare(bench: Bench, place: Place) -> dict[str, Run]:
    numbers = place.numbers(bench.size)
    common = {"path": numbers.path, "count": numbers.count, "reads": bench.reads}
    expected = {"sum": float(compute_values(numbers.pick(bench.reads, SEED)).sum())}

    def make(function: Callable[..., dict[str, float]], **arguments: object) -> Run:
        return bench.prepare(function, place, expected=expected, **common | arguments)

    return {
        "umappy": make(take_umappy, memory=bench.memory),
        "np.memmap MADV_RANDOM": make(memmap.gather_memmap, seed=SEED, advice="random"),
        **{
            form: make(arrays.gather_array, form=form, path=arrays.find(place, numbers, form), seed=SEED)
            for form in FORMS
        },
        "device": bench.prepare_limits(place),
    }


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_gather(contest: Contest, bench: Bench, place: Place, contender: str) -> None:
    """The device's time is what its best rate of 4 KiB reads takes for the blocks that hold the elements."""
    blocks = len(np.unique(8 * place.numbers(bench.size).pick(bench.reads, SEED) // BLOCK))
    contest.run(
        "gather",
        contender,
        lambda: prepare(bench, place),
        place=place,
        items=bench.reads,
        seconds=(lambda sample: blocks / sample.values["random"]) if contender == "device" else None,
        note="umappy.take" if contender == "umappy" else None,
    )


def count_singles(bench: Bench) -> int:
    return min(SINGLE_READS, max(100, bench.reads // 10))


def prepare_slow(bench: Bench, place: Place) -> dict[str, Run]:
    numbers = place.numbers(bench.size)
    common = {"path": numbers.path, "count": numbers.count}

    def make(function: Callable[..., dict[str, float]], reads: int, **arguments: object) -> Run:
        expected = {"sum": float(compute_values(numbers.pick(reads, SEED)).sum())}
        return bench.prepare(function, place, expected=expected, reads=reads, **common | arguments)

    return {
        "umappy": make(take_umappy, bench.reads, memory=bench.memory, delay=True),
        "one by one": make(read_one_by_one, count_singles(bench)),
    }


@pytest.mark.parametrize("contender", SLOW)
@pytest.mark.device("fast")
def bench_gather_from_slow_store(contest: Contest, bench: Bench, place: Place, contender: str) -> None:
    """Through a store with 1 ms latency. One by one, fewer are enough to know what one takes."""
    contest.run(
        "gather through a store with 1 ms latency",
        contender,
        lambda: prepare_slow(bench, place),
        place=place,
        items=count_singles(bench) if contender == "one by one" else bench.reads,
        note="umappy.take" if contender == "umappy" else "one read after another, of the same store",
    )

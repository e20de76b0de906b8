"""`a += 1; flush()` over a whole file, and writes of single elements at random, then a flush."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.place import Place
from harness.rounds import Run
from harness.sample import Sample
from peers import arrays
from peers.memmap import add_memmap
from rows.update import Ledger, add_umappy
from rows.writes import SEED, check, write_memmap, write_umappy

CONTENDERS = ("umappy", "np.memmap", "np.memmap MADV_SEQUENTIAL", *arrays.FORMS)
PART = 2
"""The file is this part of the others' size: it is written and read through for each sample."""


@pytest.fixture
def cleanup() -> Iterator[contextlib.ExitStack]:
    """What the test leaves changed is undone when it ends, however it ends."""
    with contextlib.ExitStack() as stack:
        yield stack


def prepare(bench: Bench, place: Place, size: int, cleanup: contextlib.ExitStack) -> dict[str, Run]:
    numbers = place.numbers(size)
    cleanup.callback(numbers.write)
    ledger = Ledger(numbers.count, numbers.read_sum, numbers.write)

    def make(function: Callable[..., dict[str, float]], **arguments: object) -> Run:
        return ledger.check(bench.prepare(function, place, path=numbers.path, **arguments))

    contenders = {
        "umappy": make(add_umappy, memory=bench.memory),
        "np.memmap": make(add_memmap),
        "np.memmap MADV_SEQUENTIAL": make(add_memmap, advice="sequential"),
    }
    for form in arrays.FORMS:
        path = arrays.find(place, numbers, form)
        remove = functools.partial(arrays.remove, path)
        cleanup.callback(remove)
        own = Ledger(numbers.count, functools.partial(arrays.compute_array_sum, form, path), remove)
        contenders[form] = own.check(bench.prepare(arrays.add_array, place, form=form, path=path))
    return contenders


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_update(contest: Contest, bench: Bench, place: Place, contender: str, cleanup: contextlib.ExitStack) -> None:
    """One round fewer, as each takes long: what was written is read back."""
    size = bench.size // PART
    contest.run(
        "a += 1; flush()",
        contender,
        lambda: prepare(bench, place, size, cleanup),
        place=place,
        nbytes=size,
        rounds=max(1, bench.rounds - 1),
    )


def count_written(run: Run, writes: int) -> Run:
    """Adds the value `device_bytes_per_write`."""

    def counted() -> Sample:
        sample = run()
        if sample.device_bytes_written is None:
            return sample
        each = sample.device_bytes_written / writes
        return dataclasses.replace(sample, values=sample.values | {"device_bytes_per_write": each})

    return counted


def prepare_writes(bench: Bench, place: Place, size: int, cleanup: contextlib.ExitStack) -> dict[str, Run]:
    numbers = place.numbers(size)
    cleanup.callback(numbers.write)
    indices = numbers.pick(bench.reads, SEED)

    def make(function: Callable[..., dict[str, float]], **arguments: object) -> Run:
        run = bench.prepare(function, place, path=numbers.path, count=numbers.count, writes=bench.reads, **arguments)
        return count_written(check(run, numbers, indices), bench.reads)

    return {"umappy": make(write_umappy, memory=bench.memory), "np.memmap": make(write_memmap)}


@pytest.mark.parametrize("contender", ["umappy", "np.memmap"])
@pytest.mark.device("fast")
def bench_random_writes(
    contest: Contest, bench: Bench, place: Place, contender: str, cleanup: contextlib.ExitStack
) -> None:
    size = bench.size // PART
    contest.run(
        "random writes of 8 bytes, flush",
        contender,
        lambda: prepare_writes(bench, place, size, cleanup),
        place=place,
        items=bench.reads,
    )

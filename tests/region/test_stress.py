"""Many threads at once, at eviction's full speed: every byte is what its thread last wrote, in memory and on disk."""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import umappy
from umappy._engine import lib
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]

KIB = 1 << 10
# Page size, pages and a bit, fillers, evictors, threads.
SHAPES = [(4 * KIB, 120, 1, 1, 3), (4 * KIB, 200, 8, 2, 16), (64 * KIB, 60, 3, 1, 5)]


class Striped:
    """A region and the bytes that it must hold. Thread k of n owns every n-th byte from k on, in all pages."""

    def __init__(self, region: umappy.Region, threads: int) -> None:
        self.region = region
        self.threads = threads
        self.expected = np.frombuffer(region, np.uint8).copy()

    def work(self, index: int, seed: int, until: float) -> None:
        rng = random.Random(seed)
        region, size = self.region, len(self.region)
        while time.monotonic() < until:
            start = rng.randrange(size)
            stop = min(size, start + rng.choice([1, 50, region.page_size, 5 * region.page_size, size]))
            mine = slice(index + start // self.threads * self.threads, stop, self.threads)
            array, expected = np.frombuffer(region, np.uint8)[mine], self.expected[mine]
            action = rng.randrange(12)
            if action < 3:
                assert (array == expected).all()
            elif action < 6:
                array[:] = expected[:] = rng.randrange(256)
            elif action < 8:
                np.add(array, 1, out=array)
                expected += 1
            elif action == 8:
                region.flush(start, stop - start)
            elif action == 9:
                region.evict(slice(start, stop))
            elif action == 10:
                region.prefetch(slice(start, stop), wait=rng.random() < 0.5)
            elif region.pager.stats().uffd != lib.UM_UFFD_USER_MODE_ONLY:
                write_to_memory(region, start, min(stop, start + 20_000))

    def check(self) -> None:
        assert (np.frombuffer(self.region, np.uint8) == self.expected).all()
        self.region.flush()
        assert (np.fromfile(self.region.store.path, np.uint8) == self.expected).all()  # type: ignore[attr-defined]


def write_to_memory(region: umappy.Region, start: int, stop: int) -> None:
    """The kernel reads the region."""
    file = os.memfd_create("umappy-test")
    try:
        with memoryview(region) as view, view[start:stop] as part:
            os.write(file, part)
    finally:
        os.close(file)


def run(threads: list[threading.Thread], failures: list[BaseException]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.stress
@pytest.mark.parametrize(("page_size", "pages", "fillers", "evictors", "count"), SHAPES)
def test_threads_that_do_everything_at_once_lose_nothing(
    map_store: MapStore,
    make_pager: MakePager,
    make_file: MakeFile,
    stress_seconds: float,
    page_size: int,
    pages: int,
    fillers: int,
    evictors: int,
    count: int,
) -> None:
    """Two regions of one pager, of the smallest budget."""
    pager = make_pager(page_size, fillers=fillers, evictors=evictors)
    size = page_size * pages + 777
    regions = [
        Striped(map_store(make_file(size, seed), page_size=page_size, pager=pager, mode="r+"), count) for seed in (1, 2)
    ]
    failures: list[BaseException] = []

    def work(region: Striped, index: int, seed: int, until: float) -> None:
        try:
            region.work(index, seed, until)
        except BaseException as error:
            failures.append(error)

    end = time.monotonic() + stress_seconds
    turn = 0
    while time.monotonic() < end:
        until = min(end, time.monotonic() + 1)
        run(
            [
                threading.Thread(target=work, args=(region, index, turn * count + index, until))
                for index in range(count)
                for region in regions
            ],
            failures,
        )
        for region in regions:
            region.check()
        turn += 1
    stats = pager.stats()
    assert stats.peak_used <= stats.memory
    assert stats.evictions > 1000 * stress_seconds


def test_quicksort_by_128_threads_over_80_fillers_sorts_the_file(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    """What the patches for write-protection were accepted on, in Linux."""
    size = 8 << 20
    path = make_file(size)
    region = map_store(path, pager=make_pager(fillers=80, evictors=2), mode="r+")
    together = threading.Barrier(128)
    failures: list[BaseException] = []

    def quicksort(first: int, last: int, threads: int) -> None:
        try:
            part: NDArray[np.int64] = np.frombuffer(region, np.int64)[first:last]
            if threads == 1:
                together.wait(60)
                part.sort(kind="quicksort")
                return
            middle = (last - first) // 2
            part.partition(middle)
        except BaseException as error:
            failures.append(error)
            together.abort()
            return
        other = threading.Thread(target=quicksort, args=(first, first + middle, threads // 2))
        other.start()
        quicksort(first + middle, last, threads // 2)
        other.join()

    quicksort(0, size // 8, 128)
    assert not failures
    region.close()
    assert (np.fromfile(path, np.int64) == np.sort(np.frombuffer(make_bytes(1, size), np.int64))).all()

"""Cutting sorted runs at the same keys, into partitions that fit a buffer.

Splitters come from the samples: merged, sorted, and taken at even distances. Where exactly a splitter falls in a run is
found by binary search between two samples, so a cut reads about a page of each run. A partition that comes out too
large (many equal keys, or coarse samples) is cut again at the median of its runs' middles; when all of it is equal it
is handed out in pieces that need no sorting.
(Sampled splitters: Frazer and McKellar 1970; regular sampling of sorted runs: Shi and Schaeffer 1992.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from umappy._sort.keys import Ordering
from umappy._sort.runs import Run
from umappy._sort.stream import ByteStream

# Binary search reads elements one by one until so many are left; these are compared at once.
BLOCK_COUNT = 256

Cut = list[int]  # an element of the stream for each run: what lies before it goes to the left


@dataclass(frozen=True)
class Partition:
    """Elements that are neighbours in the output: ranges of elements in the source, in no order or all equal."""

    ranges: tuple[tuple[int, int], ...]
    place: int  # the element of the output it begins at
    count: int
    is_sorted: bool


class Cutter:
    """Cuts `runs` of `source`."""

    def __init__(self, source: ByteStream, runs: Sequence[Run], ordering: Ordering, check: Callable[[], None]) -> None:
        self._source = source
        self._runs = runs
        self._ordering = ordering
        self._check = check

    def cut(self, count_max: int) -> Iterator[Partition]:
        """Yields the partitions in the order of the output, none larger than `count_max` elements."""
        runs = self._runs
        total = sum(run.stop - run.start for run in runs)
        place = runs[0].start
        last: Cut = [run.start for run in runs]
        for splitter in self._choose_splitters(total, count_max):
            cut = self._locate(splitter, "left", last, [run.stop for run in runs])
            for partition in self._divide(last, cut, place, count_max):
                yield partition
                place += partition.count
            last = cut
        yield from self._divide(last, [run.stop for run in runs], place, count_max)

    def _choose_splitters(self, total: int, count_max: int) -> NDArray[Any]:
        samples = np.concatenate([run.samples for run in self._runs])
        samples.sort()
        # A partition can be off by one step a run; leave room for that, as far as it is not most of the buffer.
        slack = min(len(self._runs) * self._runs[0].step, count_max // 4)
        number = -(-total // (count_max - slack))
        if number <= 1:
            return samples[:0]
        return samples[np.arange(1, number) * len(samples) // number]

    def _divide(self, first: Cut, last: Cut, place: int, count_max: int) -> Iterator[Partition]:
        """Yields partitions for the elements between two cuts."""
        waiting = [(first, last)]
        while waiting:
            low, high = waiting.pop()
            ranges = [(start, stop) for start, stop in zip(low, high, strict=True) if stop > start]
            count = sum(stop - start for start, stop in ranges)
            if count == 0:
                continue
            if count <= count_max:
                yield Partition(tuple(ranges), place, count, is_sorted=len(ranges) == 1)
                place += count
                continue
            if len(ranges) == 1:
                yield from _slice_sorted(ranges, place, count_max)
                place += count
                continue
            pivot = self._choose_pivot(ranges)
            left, right = self._locate(pivot, "left", low, high), self._locate(pivot, "right", low, high)
            equal = sum(right) - sum(left)
            if equal > count_max:
                # Everything before these must come out first; `place` is not known yet for what follows.
                before = sum(left) - sum(low)
                if before:
                    waiting += [(left, high), (low, left)]
                    continue
                same = [(start, stop) for start, stop in zip(left, right, strict=True) if stop > start]
                yield from _slice_sorted(same, place, count_max)
                place += equal
                waiting.append((right, high))
            elif left != low:
                waiting += [(left, high), (low, left)]
            else:
                waiting += [(right, high), (low, right)]

    def _choose_pivot(self, ranges: Sequence[tuple[int, int]]) -> Any:
        """Returns a key that has at least a quarter of the elements on either side, itself included."""
        middles = np.array([(start + stop) // 2 for start, stop in ranges])
        counts = np.array([stop - start for start, stop in ranges])
        for middle in middles:
            self._prefetch(int(middle), int(middle) + 1)
        keys = np.concatenate([self._keys(int(middle), int(middle) + 1) for middle in middles])
        order = np.argsort(keys, kind="stable")
        weights = np.cumsum(counts[order])
        return keys[order[np.searchsorted(weights, weights[-1] / 2)]]

    def _locate(self, key: Any, side: Literal["left", "right"], low: Cut, high: Cut) -> Cut:
        """Returns for each run the first element not before (side left) or after (right) `key`."""
        bounds = [
            self._narrow(run, key, side, start, stop) for run, start, stop in zip(self._runs, low, high, strict=True)
        ]
        for start, stop in bounds:
            if start < stop:
                self._prefetch((start + stop) // 2, (start + stop) // 2 + 1)
        return [self._search(key, side, start, stop) for start, stop in bounds]

    def _narrow(self, run: Run, key: Any, side: Literal["left", "right"], low: int, high: int) -> tuple[int, int]:
        """Returns the part of low..high where samples do not tell yet."""
        index = int(np.searchsorted(run.samples, key, side=side))  # samples before the cut
        if index == 0:
            return low, low
        before = run.start + (index - 1) * run.step + 1  # the element behind the last sample before the cut
        behind = min(run.stop, run.start + index * run.step)
        return min(max(low, before), high), max(min(high, behind), low)

    def _search(self, key: Any, side: Literal["left", "right"], low: int, high: int) -> int:
        while high - low > BLOCK_COUNT:
            self._check()
            middle = (low + high) // 2
            if np.searchsorted(self._keys(middle, middle + 1), key, side=side):
                low = middle + 1
            else:
                high = middle
        if low >= high:
            return low
        return low + int(np.searchsorted(self._keys(low, high), key, side=side))

    def _keys(self, start: int, stop: int) -> NDArray[Any]:
        dtype = self._ordering.dtype
        return self._ordering.keys(self._source.view(start * dtype.itemsize, stop * dtype.itemsize).view(dtype))

    def _prefetch(self, start: int, stop: int) -> None:
        itemsize = self._ordering.dtype.itemsize
        self._source.prefetch(start * itemsize, stop * itemsize)


def _slice_sorted(ranges: Sequence[tuple[int, int]], place: int, count_max: int) -> Iterator[Partition]:
    """Yields ranges of which each is sorted, and which are in order one after another, in pieces."""
    for start, stop in ranges:
        for begin in range(start, stop, count_max):
            end = min(stop, begin + count_max)
            yield Partition(((begin, end),), place, end - begin, is_sorted=True)
            place += end - begin

"""One way to read and write an array's bytes in order, in a region or not.

In a region, reads are prefetched a window ahead and dropped behind, and writes go around reading what they replace.
Everything is cut into segments, so that a stop is noticed soon and prefetching keeps in step. A stream over a whole
region keeps no array of it, so that the region can be closed whoever still holds the stream.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umappy.array import region_of
from umappy.region import Region

# Read at once, where pages and the budget let it.
SEGMENT_BYTES = 1 << 20

Bytes = NDArray[np.uint8]
Range = tuple[int, int]


@dataclass(frozen=True)
class ByteStream:
    """The bytes of one array, or of one region."""

    memory: Bytes | None  # None: all of `region`
    region: Region | None  # where the bytes lie, if in one
    offset: int  # bytes from the start of the region
    window_bytes: int  # how far a reader prefetches

    @classmethod
    def over_array(cls, a: NDArray[Any], window_bytes: int) -> ByteStream:
        """`a` is one-dimensional and contiguous."""
        region, offset = region_of(a) or (None, 0)
        return cls(a.view(np.ndarray).view(np.uint8), region, offset, window_bytes)

    @classmethod
    def over_region(cls, region: Region, window_bytes: int) -> ByteStream:
        return cls(None, region, 0, window_bytes)

    def view(self, start: int, stop: int) -> Bytes:
        """Returns the bytes start..stop as an array, to be let go of at once."""
        if self.memory is not None:
            return self.memory[start:stop]
        assert self.region is not None
        return np.frombuffer(self.region, np.uint8, stop - start, start)

    def read(self, ranges: Iterable[Range], destination: Bytes, check: Callable[[], None]) -> None:
        """Copies the ranges, one behind the other, to `destination`, calling `check` every now and then."""
        place = 0
        ahead: deque[Range] = deque()  # prefetched, and to be read
        segments = self._cut(ranges)
        while True:
            while sum(stop - start for start, stop in ahead) < self.window_bytes:
                if (segment := next(segments, None)) is None:
                    break
                self.prefetch(*segment)
                ahead.append(segment)
            if not ahead:
                break
            check()
            start, stop = ahead.popleft()
            # A prefetch that is late would fill again what has been read and dropped; and it reads more at once than
            # faults would.
            self.prefetch(start, stop, wait=True)
            np.copyto(destination[place : place + stop - start], self.view(start, stop))
            place += stop - start
            self.drop(start, stop)

    def write(self, offset: int, source: Bytes) -> None:
        """Writes `source` at byte `offset`."""
        if self.region is None:
            np.copyto(self.view(offset, offset + len(source)), source)
            return
        self.region.overwrite(self.offset + offset, source)
        self.drop(offset - self.window_bytes, offset - self.window_bytes + len(source))

    def bytes_to_page(self, offset: int) -> int:
        """Returns how far behind byte `offset` the next page begins; writes that end there need no page read."""
        return -(self.offset + offset) % self._page_bytes

    @property
    def _page_bytes(self) -> int:
        return self.region.page_size if self.region is not None else mmap.PAGESIZE

    def _cut(self, ranges: Iterable[Range]) -> Iterator[Range]:
        """Yields the ranges in segments that begin at page boundaries, so that no page is dropped half read."""
        page = self._page_bytes
        step = max(page, min(SEGMENT_BYTES, self.window_bytes) // page * page)
        for start, stop in ranges:
            while start < stop:
                end = min(stop, start + step - (self.offset + start) % step)
                yield start, end
                start = end

    def prefetch(self, start: int, stop: int, *, wait: bool = False) -> None:
        if self.region is not None and stop > start:
            self.region.prefetch(slice(self.offset + start, self.offset + stop), wait=wait)

    def prefetch_ranges(self, ranges: Iterable[Range]) -> None:
        """Prefetches the ranges, as much as a reader's window."""
        room = self.window_bytes
        for start, stop in ranges:
            if room <= 0:
                return
            self.prefetch(start, min(stop, start + room))
            room -= stop - start

    def drop(self, start: int, stop: int) -> None:
        """Makes room: what lies in start..stop and in its first page is not needed soon."""
        if self.region is not None:
            first = max(0, self.offset + start) // self._page_bytes * self._page_bytes
            last = (self.offset + stop) // self._page_bytes * self._page_bytes
            if last > first:
                self.region.evict(slice(first, last))

    def check(self) -> None:
        """Raises what a fill or a write has failed with so far."""
        if self.region is not None:
            self.region.check()

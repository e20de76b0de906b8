"""One way to read and write an array's bytes in order, in a region or not.

What of a region is not in memory goes straight between its store and the caller's buffer, in the calling thread, and
stays out of memory: a sort looks at each byte once, and has threads enough to keep the store busy. No byte is copied if
the buffer lies as the region does, modulo SECTOR_BYTES; `spread` says where that is. A stream over a whole region keeps
no array of it, so that the region can be closed whoever still holds the stream.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umappy._engine import ffi, lib
from umappy.array import region_of
from umappy.errors import OP_MEMORY, make_store_error
from umappy.region import Region

# What lies at multiples of this in a region and in memory moves without a copy.
SECTOR_BYTES = 4096
# Moved between two looks whether to stop.
SEGMENT_BYTES = 4 << 20
# A write waits so long for memory before an error is looked for.
WRITE_TIMEOUT_MS = 1000

Bytes = NDArray[np.uint8]
Range = tuple[int, int]


@dataclass(frozen=True)
class ByteStream:
    """The bytes of one array, or of one region."""

    memory: Bytes | None  # None: all of `region`
    region: Region | None  # where the bytes lie, if in one
    offset: int  # bytes from the start of the region

    @classmethod
    def over_array(cls, a: NDArray[Any]) -> ByteStream:
        """`a` is one-dimensional and contiguous."""
        region, offset = region_of(a) or (None, 0)
        return cls(a.view(np.ndarray).view(np.uint8), region, offset)

    @classmethod
    def over_region(cls, region: Region) -> ByteStream:
        return cls(None, region, 0)

    def view(self, start: int, stop: int) -> Bytes:
        """Returns the bytes start..stop as an array, to be let go of at once."""
        if self.memory is not None:
            return self.memory[start:stop]
        assert self.region is not None
        return np.frombuffer(self.region, np.uint8, stop - start, start)

    def spread(self, ranges: Sequence[Range], room: int) -> list[int] | None:
        """Returns where `read_spread` is to put each range in a buffer of `room` bytes; None: they do not fit."""
        if self.region is None:
            return None
        places, end = [], 0  # a multiple of a block
        for start, stop in ranges:
            head = (self.offset + start) % SECTOR_BYTES
            places.append(end + head)
            end += -(-(head + stop - start) // SECTOR_BYTES) * SECTOR_BYTES
        return places if end <= room else None

    def read_spread(
        self, ranges: Sequence[Range], places: Sequence[int], buffer: Bytes, check: Callable[[], None]
    ) -> None:
        """Copies the ranges to their places in `buffer`, which begins at a block. The rest of their blocks changes too.

        `check` is called every now and then, here and below.
        """
        assert self.region is not None
        for (start, stop), place in zip(ranges, places, strict=True):
            head = place % SECTOR_BYTES
            first, last = self.offset + start - head, self._find_block_end(stop)
            for at in range(first, last, SEGMENT_BYTES):
                check()
                end = min(last, at + SEGMENT_BYTES)
                _read(self.region, at, buffer[place - head + at - first : place - head + end - first])

    def read_packed(self, ranges: Sequence[Range], destination: Bytes, space: Bytes, check: Callable[[], None]) -> None:
        """Copies the ranges, one behind the other, to `destination`; from a region by way of `space`."""
        place, step = 0, len(space) // SECTOR_BYTES * SECTOR_BYTES
        for start, stop in ranges:
            while start < stop:
                check()
                if self.region is None or step == 0:
                    end = min(stop, start + SEGMENT_BYTES)
                    part = self.view(start, end)
                else:
                    head = (self.offset + start) % SECTOR_BYTES
                    first = self.offset + start - head
                    end = min(stop, start - head + step)
                    _read(self.region, first, space[: self._find_block_end(end) - first])
                    part = space[head : head + end - start]
                np.copyto(destination[place : place + end - start], part)
                place += end - start
                start = end

    def _find_block_end(self, stop: int) -> int:
        """Returns, in bytes of the region, where the block ends that holds the last byte before `stop`."""
        assert self.region is not None
        return min(len(self.region), -(-(self.offset + stop) // SECTOR_BYTES) * SECTOR_BYTES)

    def write(self, offset: int, source: Bytes) -> None:
        """Writes `source` at byte `offset`; no other thread changes it meanwhile."""
        if self.region is None:
            np.copyto(self.view(offset, offset + len(source)), source)
        else:
            _write(self.region, self.offset + offset, source)

    def bytes_to_page(self, offset: int) -> int:
        """Returns how far behind byte `offset` the next page begins; writes that end there need no page read."""
        return -(self.offset + offset) % self._page_bytes

    @property
    def _page_bytes(self) -> int:
        return self.region.page_size if self.region is not None else mmap.PAGESIZE

    def prefetch(self, start: int, stop: int) -> None:
        if self.region is not None and stop > start:
            self.region.prefetch(slice(self.offset + start, self.offset + stop))

    def check(self) -> None:
        """Raises what a fill or a write has failed with so far."""
        if self.region is not None:
            self.region.check()


def _read(region: Region, offset: int, destination: Bytes) -> None:
    done = ffi.new("uint64_t *")
    with region._handle.use() as pointer, ffi.from_buffer(destination) as memory:
        code = lib.um_region_read_through(pointer, offset, memory, len(destination), done)
    if code:
        raise make_store_error(-code, op=OP_MEMORY, offset=offset, length=len(destination))
    region.check()


def _write(region: Region, offset: int, source: Bytes) -> None:
    done, stalled = ffi.new("uint64_t *"), -1
    with region._handle.use() as pointer, ffi.from_buffer(source) as memory:
        while (
            code := lib.um_region_write_through(pointer, offset, memory, len(source), WRITE_TIMEOUT_MS, done)
        ) == -errno.ETIMEDOUT:
            region.check()
            if done[0] == stalled:
                raise TimeoutError(
                    f"no memory came free for {WRITE_TIMEOUT_MS / 1000:.0f} s: the store is too slow or failing"
                )
            stalled = done[0]
    if code:
        raise make_store_error(-code, op=OP_MEMORY, offset=offset, length=len(source))
    region.check()

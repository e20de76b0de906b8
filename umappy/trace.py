"""Fault traces: which pages a program missed, in order. `Pager(trace=path)` writes them; docs/trace.md has the format.

A trace holds what the pager saw, and it sees misses only: a touch of a page in memory leaves no mark. So it is the
exact string of references of a program only where nothing was hit, which a small budget comes close to; see "What a
trace holds" in docs/trace.md.
"""

from __future__ import annotations

import enum
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"umtrace\n"
VERSION = 1
REGIONS_MAX = 1 << 20
_HEADER = struct.Struct("<8sHHIQ")
_WITH_TIME = 1
_REGION, _THREAD, _NEXT_PAGE, _CONTROL = 0x04, 0x08, 0x10, 0x80
_DEFINE, _LOST, _END = 0x80, 0x81, 0x82
_NUMBER_BITS_MAX = 70

FAULT = np.dtype([("time_us", "<u8"), ("page", "<u8"), ("region", "<u4"), ("thread", "<u4"), ("kind", "u1")])
"""One fault: microseconds since the trace began, page of the region, region, kernel id of the thread, `Kind`."""


class Kind(enum.IntEnum):
    """What a fault was."""

    READ = 0
    """A read of an absent page."""
    WRITE = 1
    """A write to an absent page."""
    REFAULT = 2
    """A touch of a page in standby: a hit, that cost no store."""
    PROTECT = 3
    """The first write to a clean page, or to a block of it."""


class TraceError(ValueError):
    """A file that is no trace, or not a whole one."""


@dataclass(frozen=True)
class TraceRegion:
    """A region whose faults a trace holds; sizes in bytes."""

    page_size: int
    size: int


@dataclass(frozen=True)
class Trace:
    """The faults of a pager's regions."""

    start: datetime
    regions: dict[int, TraceRegion]
    faults: NDArray[Any]
    """A structured array of FAULT, in the order in which the faults were read."""
    lost: int
    """Faults that are not here, as they came faster than they could be written."""
    is_complete: bool
    """False: the process was killed, and the end of the trace is missing."""

    @property
    def working_set(self) -> int:
        """Bytes of all pages that were touched."""
        pages = np.unique(self.faults[["region", "page"]])
        sizes = {number: region.page_size for number, region in self.regions.items()}
        numbers, counts = np.unique(pages["region"], return_counts=True)
        return sum(sizes[int(number)] * int(count) for number, count in zip(numbers, counts, strict=True))


def read_trace(path: str | os.PathLike[str], *, partial: bool = False) -> Trace:
    """Reads a trace.

    TraceError when the file is no trace, is damaged, or ends too early: the process was killed, the disk was full, or
    it is still being written. With `partial` the faults up to there are returned.
    """
    with open(path, "rb") as file:
        data = file.read()
    name = os.fsdecode(path)
    if len(data) < _HEADER.size and MAGIC.startswith(data[: len(MAGIC)]) and data:
        raise TraceError(f"{name}: ends within its header: nothing was recorded")
    if data[: len(MAGIC)] != MAGIC:
        raise TraceError(f"{name}: is no fault trace (it does not begin with {MAGIC!r}); Pager(trace=...) writes one")
    _, version, flags, _, start_us = _HEADER.unpack_from(data)
    if version != VERSION:
        raise TraceError(f"{name}: has version {version} of the format, and this umappy reads {VERSION}")
    reader = _Reader(name, data, bool(flags & _WITH_TIME))
    is_complete = reader.read()
    if not is_complete and not partial:
        raise TraceError(
            f"{name}: ends too early, after {len(reader.faults)} faults: its process was killed or still runs, or the "
            "disk was full; what is there can be read all the same (partial=True, --partial)"
        )
    start = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=start_us)
    return Trace(start, reader.regions, np.array(reader.faults, FAULT), reader.lost, is_complete)


class _EndedError(Exception):
    """The data ends within a record."""


class _Reader:
    """Decodes the records after the header."""

    def __init__(self, name: str, data: bytes, with_time: bool) -> None:
        self.regions: dict[int, TraceRegion] = {}
        self.faults: list[tuple[int, int, int, int, int]] = []
        self.lost = 0
        self._name = name
        self._data = data
        self._at = _HEADER.size
        self._with_time = with_time
        self._last_pages: dict[int, int] = {}

    def read(self) -> bool:
        """Reads to the end; False when the end record is missing."""
        region = thread = time_us = 0
        data, last_pages, number = self._data, self._last_pages, self._read_number
        try:
            while self._at < len(data):
                tag = data[self._at]
                self._at += 1
                if tag & _CONTROL:
                    if self._read_control(tag):
                        return True
                    continue
                if tag & ~(_REGION | _THREAD | _NEXT_PAGE | 3):
                    raise self._damaged(f"there is no record {tag:#04x}")
                new_region = number() if tag & _REGION else region
                new_thread = number() if tag & _THREAD else thread
                if new_region not in last_pages:
                    raise self._damaged(f"a fault of region {new_region}, which was not announced")
                if tag & _NEXT_PAGE:
                    page = last_pages[new_region] + 1
                else:
                    step = number()
                    page = last_pages[new_region] + (step >> 1 ^ -(step & 1))
                if not 0 <= page * self.regions[new_region].page_size < self.regions[new_region].size:
                    raise self._damaged(f"page {page} lies outside of region {new_region}")
                time_us += number() if self._with_time else 0
                if new_thread >> 32 or time_us >> 64:
                    raise self._damaged(f"thread {new_thread} at {time_us} us cannot be")
                region, thread = new_region, new_thread
                last_pages[region] = page
                self.faults.append((time_us, page, region, thread, tag & 3))
        except _EndedError:
            pass
        return False

    def _read_control(self, tag: int) -> bool:
        """Reads a record that is no fault; True: it was the end."""
        if tag == _DEFINE:
            number, page_size, size = (self._read_number() for _ in range(3))
            if page_size == 0 or size == 0 or number >= REGIONS_MAX:
                raise self._damaged(f"region {number} has {size} bytes, in pages of {page_size}")
            self.regions[number] = TraceRegion(page_size, size)
            self._last_pages[number] = 0
        elif tag == _LOST:
            self.lost += self._read_number()
        elif tag == _END:
            faults, lost = self._read_number(), self._read_number()
            if (faults, lost) != (len(self.faults), self.lost):
                raise self._damaged(f"it ends with a count of {faults} faults, and there are {len(self.faults)}")
            if self._at != len(self._data):
                raise self._damaged("something follows its end")
            return True
        else:
            raise self._damaged(f"there is no record {tag:#04x}")
        return False

    def _read_number(self) -> int:
        data, at = self._data, self._at
        value = shift = 0
        while at < len(data):
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if value >> 64 or shift > _NUMBER_BITS_MAX:
                raise self._damaged("a number is longer than 64 bits")
            if byte < 0x80:
                self._at = at
                return value
        raise _EndedError

    def _damaged(self, what: str) -> TraceError:
        return TraceError(f"{self._name}: is damaged before byte {self._at}: {what}")

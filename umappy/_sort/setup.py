"""What all phases of one sort share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from umappy._sort.keys import Ordering
from umappy._sort.output import Output
from umappy._sort.plan import Plan
from umappy._sort.progress import SortProgress
from umappy._sort.stream import Bytes, ByteStream, Range


@dataclass(frozen=True)
class Setup:
    """The order, the plan, a buffer for each thread, and how far the sort is."""

    ordering: Ordering
    plan: Plan
    buffers: Sequence[Bytes]
    progress: SortProgress

    @property
    def itemsize(self) -> int:
        return self.ordering.dtype.itemsize

    def make_output(self, stream: ByteStream, *, is_result: bool) -> Output:
        return Output(stream, self.plan.chunk_bytes, self.progress, is_result)

    def find_space(self, buffer: Bytes) -> Bytes:
        """Returns the part of a thread's buffer that elements are written through."""
        return buffer[-self.plan.space_bytes :]

    def gather(
        self,
        source: ByteStream,
        ranges: Sequence[Range],
        buffer: Bytes,
        check: Callable[[], None],
        *,
        may_spread: bool = False,
    ) -> tuple[Bytes, list[Range]]:
        """Reads ranges of elements into `buffer`: returns its part that holds them, and where in it each of them is.

        They lie one behind the other, unless there are several and `may_spread`.
        """
        size = self.itemsize
        where = [(start * size, stop * size) for start, stop in ranges]
        lengths = [stop - start for start, stop in where]
        room = buffer[: -self.plan.space_bytes]
        places = None
        if (may_spread or len(ranges) == 1) and source.offset % self.ordering.dtype.alignment == 0:
            places = source.spread(where, len(room))
        if places is None:
            total = sum(lengths)
            source.read_packed(where, room[:total], self.find_space(buffer), check)
            base, end, places = 0, total, [sum(lengths[:index]) for index in range(len(lengths))]
        else:
            source.read_spread(where, places, room, check)
            base, end = places[0], places[-1] + lengths[-1]
        parts = [(place - base, place - base + length) for place, length in zip(places, lengths, strict=True)]
        return room[base:end], parts

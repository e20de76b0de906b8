"""What all phases of one sort share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from umappy._sort.keys import Ordering
from umappy._sort.output import Output
from umappy._sort.plan import Plan
from umappy._sort.progress import SortProgress
from umappy._sort.stream import Bytes, ByteStream


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

    def split(self, buffer: Bytes, count: int) -> tuple[Bytes, Bytes]:
        """Returns the parts of a thread's buffer for `count` elements, and for writing them."""
        return buffer[: count * self.itemsize], buffer[-self.plan.space_bytes :]

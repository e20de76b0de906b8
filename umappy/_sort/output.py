"""Writing a sorted buffer to its place, page by page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from umappy._sort.keys import SortedElements
from umappy._sort.progress import SortProgress
from umappy._sort.stream import Bytes, ByteStream


@dataclass(frozen=True)
class Output:
    """Where sorted elements go."""

    stream: ByteStream
    chunk_bytes: int  # written at once
    progress: SortProgress
    is_result: bool  # not scratch

    def write(self, offset: int, elements: SortedElements, space: Bytes, check: Callable[[], None]) -> None:
        """Writes `elements` at byte `offset`, through `space` if they must be put in order on the way.

        All writes but the first and the last cover whole pages, which then need not be read, if a chunk holds one.
        """
        first = self.stream.bytes_to_page(offset) % self.chunk_bytes  # chunks are smaller than large pages
        for chunk in elements.chunks(first, self.chunk_bytes, space):
            check()
            self.progress.note_write(is_output=self.is_result)
            self.stream.write(offset, chunk)
            self.progress.note_bytes(len(chunk))
            offset += len(chunk)

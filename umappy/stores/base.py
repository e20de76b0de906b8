"""The contract of a store: where bytes live.

`Store` is what users subclass; umappy's own stores are native (native.py), since nothing on the way from a page fault
to its page may need the GIL.
"""

from __future__ import annotations

import abc
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

    from umappy._engine import um_store


class Store(abc.ABC):
    """Bytes from 0 to `size` that can be read, and written if `writable`.

    The calls are thread-safe and may run in parallel, but never two at once on the same page. Each ends within a
    deadline of the store's own. A call that fails raises and changes nothing else; StoreError and its kin carry errno,
    store and offset.
    """

    size: int
    """Bytes; constant."""
    writable: bool = False
    page_size: int = 1
    """Bytes that the store reads and writes together; constant. A region's page size is a multiple of it."""

    _any_buffer = False
    """It reads to memory that is aligned to nothing as fast as to other memory."""
    _handle: um_store | None = None

    @abc.abstractmethod
    def read_into(self, offset: int, buffer: Buffer) -> int | None:
        """Fills `buffer` with the bytes from `offset` on; returns how many, None for all.

        ValueError where offset and the buffer's length pass `size`.
        """

    def write(self, offset: int, buffer: Buffer) -> None:
        """Takes all bytes of `buffer` for those from `offset` on; may keep them until `flush`.

        ValueError where offset and the buffer's length pass `size`.
        """
        raise TypeError(f"{self!r} is read-only: {type(self).__name__} has no write")

    def flush(self) -> None:  # noqa: B027  (a store that keeps nothing back has nothing to do)
        """Returns when everything written before survives a power cut."""

    def close(self) -> None:  # noqa: B027
        """Lets go of what the store holds. Closing again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as failed:
            error.add_note(f"and closing {self!r} failed: {failed}")

    def _release(self) -> um_store:
        """Hands the native store to a region or a wrapper, which closes it."""
        raise TypeError(f"{self!r} has no native store and cannot be mapped")

    def _reclaim(self, handle: um_store) -> None:
        """Undoes `_release`, where the new owner could not be made."""
        raise TypeError(f"{self!r} has no native store")

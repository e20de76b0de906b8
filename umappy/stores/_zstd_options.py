"""What callers may give for compression, read and checked: level, page size, dictionary."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Protocol, SupportsIndex, TypeAlias, cast

from umappy.sizes import format_size, parse_size

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

LEVEL_DEFAULT = 3
LEVEL_MIN, LEVEL_MAX = -131072, 22
PAGE_SIZE_DEFAULT = 64 << 10
PAGE_SIZE_MIN, PAGE_SIZE_MAX = 4 << 10, 8 << 20
DICTIONARY_MAX = 8 << 20


class SupportsAsBytes(Protocol):
    """As `zstandard.ZstdCompressionDict` is."""

    def as_bytes(self) -> bytes: ...


Dictionary: TypeAlias = "Buffer | SupportsAsBytes"


def read_level(level: SupportsIndex) -> int:
    """1 (fast) to 22 (small), or below 0, faster still."""
    try:
        value = operator.index(level)
    except TypeError:
        value = 0
    if isinstance(level, bool) or value == 0 or not LEVEL_MIN <= value <= LEVEL_MAX:
        raise ValueError(f"level is {level!r}: wants 1 to {LEVEL_MAX}, or a number below 0 for more speed")
    return value


def read_page_size(page_size: SupportsIndex | str) -> int:
    """Bytes, a power of two from 4 KiB to 8 MiB."""
    value = parse_size(page_size, "page_size")
    if not PAGE_SIZE_MIN <= value <= PAGE_SIZE_MAX or value & (value - 1):
        raise ValueError(
            f"page_size is {page_size!r}: wants a power of two from {format_size(PAGE_SIZE_MIN)} to "
            f"{format_size(PAGE_SIZE_MAX)}"
        )
    return value


def read_dictionary(dictionary: Dictionary | None) -> bytes:
    """The bytes of a dictionary, as `zstd --train` or `zstandard.train_dictionary` makes one; empty for None."""
    if dictionary is None:
        return b""
    as_bytes = getattr(dictionary, "as_bytes", None)
    content = as_bytes() if as_bytes is not None else bytes(memoryview(cast("Buffer", dictionary)))
    if not 8 <= len(content) <= DICTIONARY_MAX:
        raise ValueError(f"dictionary has {len(content)} bytes: wants 8 bytes to {format_size(DICTIONARY_MAX)}")
    return content

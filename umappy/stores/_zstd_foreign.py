"""Opening a .zst that umappy did not write: finding its frames, with a word of what that costs."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umappy._engine import ffi, lib
from umappy.sizes import format_size
from umappy.stores.native import make_open_error

if TYPE_CHECKING:
    from umappy._engine import um_store, um_zstd_scan

STEP_MS = 100
"""How long a step stays in C before Python may look for signals."""
CACHE_SIZE = 16 << 20
"""Bytes of decoded frames that a store keeps."""
LARGE_FRAME = 64 << 20
"""Bytes: of a larger frame, half is decoded for a byte in its middle."""
LARGE_UNKNOWN = 1 << 30
"""Bytes of a file without sizes from which on finding them takes more than a moment."""
WINDOW_LOG_MAX = 31

ScanCallback = Callable[[int, int], object]


class ZstdCostWarning(UserWarning):
    """Reading a compressed file will be slow because of how it was made. The message names the remedy."""


@dataclass(frozen=True)
class ForeignInfo:
    """How a .zst that umappy did not write is made. All sizes are bytes."""

    size: int
    """Of what it decodes to."""
    file_size: int
    frames: int
    """Frames that hold something; each is decoded from its start."""
    largest_frame: int
    """What the largest decodes to."""
    skipped: int
    """Of the file, in frames that hold nothing."""
    decoded: int
    """What was decoded only to learn sizes."""
    seek_table: bool
    """Whether a seek table told where the frames are."""
    seek_table_wrong: bool
    """Whether there is one that does not fit the file, and was not used."""


def open_foreign(
    path: str,
    dictionary: bytes,
    *,
    any_window: bool = False,
    walk: bool = False,
    report: ScanCallback | None = None,
) -> tuple[um_store, ForeignInfo]:
    """Returns the read-only native store over the frames of `path`, and what was found.

    `any_window` allows frames that take up to 2 GiB of memory to decode; `walk` passes a seek table by. `report` is
    called with bytes of the file looked at, and its size, every now and then. Warns where reading at random will be
    slow. StoreError for a file that is none.
    """
    record = ffi.new("um_error *")
    scan = _open_scan(path, dictionary, any_window=any_window, walk=walk)
    try:
        info = _run_scan(scan, path, report)
        store = ffi.new("um_store **")
        if lib.um_zstd_foreign_open(scan, CACHE_SIZE, store, record) < 0:
            raise make_open_error(record)
    except BaseException:
        lib.um_zstd_scan_close(scan)
        raise
    return store[0], info


def warn_of_large_frame(path: str, size: int) -> None:
    """`size`: bytes that the largest frame decodes to."""
    if size > LARGE_FRAME:
        warnings.warn(
            f"{path}: has a frame of {format_size(size)}, which can only be decoded from its start, so that reading at "
            "random is slow; `umappy pack` makes a file of it that reads fast",
            ZstdCostWarning,
            stacklevel=3,
        )


def _open_scan(path: str, dictionary: bytes, *, any_window: bool, walk: bool) -> um_zstd_scan:
    record, scan = ffi.new("um_error *"), ffi.new("um_zstd_scan **")
    name = ffi.new("char[]", path.encode("utf-8", "surrogateescape"))
    with ffi.from_buffer("char[]", dictionary) as memory:
        options = ffi.new(
            "um_zstd_scan_options *",
            {
                "path": name,
                "dictionary": memory,
                "dictionary_size": len(dictionary),
                "window_log": WINDOW_LOG_MAX if any_window else 0,
                "walk": walk,
            },
        )
        if lib.um_zstd_scan_open(options, scan, record) < 0:
            raise make_open_error(record)
    return scan[0]


def _run_scan(scan: um_zstd_scan, path: str, report: ScanCallback | None) -> ForeignInfo:
    """In steps, so that Ctrl-C is heard."""
    record, found = ffi.new("um_error *"), ffi.new("um_zstd_scan_info *")
    warned = False
    while True:
        result = lib.um_zstd_scan_step(scan, STEP_MS, record)
        lib.um_zstd_scan_look(scan, found)
        if result == 0:
            break
        if result != -errno.EAGAIN:
            raise make_open_error(record)
        if found.decoding and not warned and found.file_size >= LARGE_UNKNOWN:
            warned = True
            warnings.warn(
                f"{path}: does not tell the sizes of its frames, so all {format_size(found.file_size)} are decoded "
                "to find them, each time it is opened; `umappy pack` makes a file of it that opens at once",
                ZstdCostWarning,
                stacklevel=5,
            )
        if report is not None:
            report(found.position, found.file_size)
    return ForeignInfo(
        size=found.size,
        file_size=found.file_size,
        frames=found.frames,
        largest_frame=found.largest,
        skipped=found.skipped,
        decoded=found.decoded,
        seek_table=bool(found.table),
        seek_table_wrong=bool(found.table_wrong),
    )

"""Writing a packed file, front to back, in constant memory, compressed on several threads."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from umappy._engine import ffi, lib
from umappy.stores._zstd_library import find_zstd_library
from umappy.stores.native import NativeStore, make_open_error, make_record_error

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

    from umappy._engine import um_zstd_pack

STEP = 4 << 20
"""Bytes that go to the engine with one call: between two Python looks for signals."""


class ZstdPack:
    """A packed file in the making. It appears under its path, durable, with `finish`; else nothing does.

    `target` is a path, or a descriptor to which a plain file of the seekable format is streamed. `page_size` is bytes,
    `level` 1 to 22 or below 0, `threads` 0 for one a processor.
    """

    _pack: um_zstd_pack | None

    def __init__(self, target: str | int, *, page_size: int, level: int, dictionary: bytes, threads: int = 0) -> None:
        find_zstd_library()
        name = ffi.new("char[]", os.fsencode(target)) if isinstance(target, str) else ffi.NULL
        self._dictionary = ffi.from_buffer("char[]", dictionary)
        options = ffi.new(
            "um_zstd_pack_options *",
            {
                "path": name,
                "descriptor": -1 if isinstance(target, str) else target,
                "level": level,
                "page_size": page_size,
                "threads": threads,
                "dictionary": self._dictionary,
                "dictionary_size": len(dictionary),
            },
        )
        pack, self._record = ffi.new("um_zstd_pack **"), ffi.new("um_error *")
        self._pack = None
        if lib.um_zstd_pack_open(options, pack, self._record) < 0:
            raise make_open_error(self._record)
        self._pack = pack[0]

    def write(self, buffer: Buffer) -> None:
        """Takes the image's next bytes (contiguous)."""
        with memoryview(buffer).cast("B") as whole:
            for start in range(0, len(whole), STEP):
                with whole[start : start + STEP] as piece, ffi.from_buffer("char[]", piece) as memory:
                    self._check(lib.um_zstd_pack_write(self._get(), memory, len(memory), self._record))

    def write_store(self, store: NativeStore, offset: int, length: int) -> None:
        """Takes the image's next bytes from a store: whole pages, but at its end."""
        with store._borrow() as handle:
            self._check(lib.um_zstd_pack_store(self._get(), handle, offset, length, self._record))

    def finish(self) -> None:
        """Writes what is left and makes the file appear."""
        pack, self._pack = self._get(), None
        self._check(lib.um_zstd_pack_finish(pack, self._record))

    def abort(self) -> None:
        """Gives it up; nothing appears. After `finish` it does nothing."""
        pack, self._pack = self._pack, None
        if pack is not None:
            lib.um_zstd_pack_abort(pack)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abort()

    def __del__(self) -> None:
        if getattr(self, "_pack", None) is not None:
            self.abort()

    def _get(self) -> um_zstd_pack:
        if self._pack is None:
            raise ValueError("the packed file is finished, or was given up")
        return self._pack

    def _check(self, result: int) -> None:
        if result < 0:
            raise make_record_error(self._record)

"""`ZstdStore`: a compressed file, written and read at random, that `zstd -d` decodes once it is packed."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, SupportsIndex
from uuid import UUID

from umappy._engine import ffi, lib
from umappy.sizes import format_size, parse_size
from umappy.stores._zstd_foreign import ForeignInfo, ScanCallback, open_foreign, warn_of_large_frame
from umappy.stores._zstd_library import find_zstd_library
from umappy.stores._zstd_options import (
    LEVEL_DEFAULT,
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MIN,
    Dictionary,
    read_dictionary,
    read_level,
    read_page_size,
)
from umappy.stores.file import TO_END, Path, Size, check_path, parse_mode
from umappy.stores.native import NativeStore, make_open_error, make_record_error

if TYPE_CHECKING:
    from umappy._engine import um_store


@dataclass(frozen=True)
class ZstdInfo:
    """What a file of umappy's own format holds. All sizes are bytes."""

    size: int
    """Of the image."""
    file_size: int
    allocated: int
    """What the disk spends on the file: dead space may be given back within it."""
    page_size: int
    packed: bool
    """Whether `zstd -d` gives exactly the image, and readers of the seekable format read it at random."""
    generation: int
    """Rises with each flush."""
    base: int
    """Of the frames that `zstd -d` decodes."""
    base_live: int
    """Of these, in frames that the image still needs."""
    log: int
    """Of what was written since."""
    log_live: int
    """Of these, in use."""
    index_memory: int
    """Of the index in memory now."""
    dictionary_size: int
    foreign_frames: int
    """Frames of others in a file that was adopted."""
    segments: int
    format_version: int
    level: int
    """Of what was last opened for writing."""
    damaged_superblocks: int
    uuid: UUID

    @property
    def dead(self) -> int:
        """Bytes of the file that the image does not need and packing would free, about."""
        if self.packed:
            return 0
        return self.base - self.base_live + self.log - self.log_live


class ZstdStore(NativeStore):
    """A compressed file: pages of `page_size` bytes, each compressed by itself, read and written in any order.

    `mode` is "r" (read), "r+" (read and write; a larger `size` makes the image longer), "w+" (create or empty) or "x"
    (create, fail if it exists), or numpy's long name of it; the last two need `size`. New bytes are zeros and take no
    space. What was flushed survives kill -9 and power cuts, all of it or nothing.

    A file is a valid zstd file at all times. `zstd -d` gives the image of its last packing (`umappy pack`,
    `umappy.save`); `packed` tells whether that is still the image.

    Any other .zst can be read: at random by a seek table or by its frames (`foreign` tells how many), from its start
    where it is one large frame; there is a ZstdCostWarning where that is slow. Opening one with "r+" makes it one of
    umappy's, in its place, without compressing it anew.

    `page_size` is of a new file, a power of two from 4 KiB to 8 MiB, default 64 KiB; for others leave it out, or give
    what the file has. The page size of a region is a multiple of it. `level` is 1 to 22, or below 0 for more speed, of
    what is written from now on. `dictionary` is bytes or a `zstandard.ZstdCompressionDict`; a new file keeps it and
    needs it no more, a file that is not umappy's must be given the one it was compressed with.

    With `lock`, a writer excludes other writers, in this process and others. `recover` goes back one flush where the
    last does not verify: data that was flushed is lost with it.

    Raises ValueError for arguments that do not fit the file, and StoreError otherwise: NotFound, Exists, Permission,
    Locked, Full, Corrupt.
    """

    mode: Literal["r", "r+", "w+", "x"]
    path: str
    """Absolute."""
    page_size: int
    foreign: ForeignInfo | None
    """How a file was made that is not umappy's; None for one that is."""

    def __init__(
        self,
        path: Path,
        mode: str = "r",
        *,
        size: Size | None = None,
        page_size: SupportsIndex | str | None = None,
        level: SupportsIndex = LEVEL_DEFAULT,
        dictionary: Dictionary | None = None,
        lock: bool = True,
        recover: bool = False,
        _lenient: bool = False,
        _walk: bool = False,
        _report: ScanCallback | None = None,
    ) -> None:
        self.path = os.path.abspath(os.fsdecode(check_path(path)))
        self.mode = parse_mode(mode)
        self._level = read_level(level)
        self._lock, self._recover = bool(lock), bool(recover)
        self._dictionary = read_dictionary(dictionary)
        size_wanted = None if size is None else parse_size(size, "size")
        page_wanted = None if page_size is None else read_page_size(page_size)
        is_new = self.mode in {"w+", "x"}
        if is_new and size_wanted is None:
            raise ValueError(f"mode is {mode!r}: a new file needs a size")
        if is_new and page_wanted is None:
            page_wanted = PAGE_SIZE_DEFAULT
        find_zstd_library()
        self.foreign = None
        handle = self._open_native(size_wanted, page_wanted)
        if handle is None and self.mode == "r":
            handle, self.foreign = open_foreign(
                self.path, self._dictionary, any_window=_lenient, walk=_walk, report=_report
            )
            self._check_foreign(handle, size_wanted)
        elif handle is None:
            self._adopt(page_wanted)
            handle = self._open_native(size_wanted, page_wanted)
        if handle is None:
            raise ValueError(
                f"{self.path!r} was replaced by a file that is not umappy's while it was opened: try again"
            )
        super().__init__(handle)
        if self._dictionary and self.foreign is None and not is_new and not _lenient:
            self._check_dictionary()
        if self.foreign is not None:
            self.page_size = _choose_foreign_page(self.foreign)
            largest = self.foreign.largest_frame
        else:
            info = self._look()
            self.page_size = info.page_size
            largest = info.size // info.foreign_frames if info.foreign_frames else 0
        if not _lenient:
            warn_of_large_frame(self.path, largest)

    @property
    def packed(self) -> bool:
        """Whether `zstd -d` gives exactly the image, and readers of the seekable format read it at random."""
        return self.foreign is not None or self.info().packed

    def info(self) -> ZstdInfo:
        """Tells what the file holds now. ValueError for one that is not umappy's, see `foreign`."""
        if self.foreign is not None:
            raise ValueError(f"{self!r} is not umappy's own: its `foreign` tells how it was made")
        with self._borrow():
            return self._look()

    def read_dictionary(self) -> bytes:
        """Returns the dictionary that the pages are compressed with; empty where there is none."""
        if self.foreign is not None:
            return self._dictionary
        record = ffi.new("um_error *")
        with self._borrow() as handle:
            buffer = bytearray(self._look().dictionary_size)
            with ffi.from_buffer("char[]", buffer, True) as memory:
                if lib.um_zstd_store_dictionary(handle, memory, record) < 0:
                    raise make_record_error(record)
        return bytes(buffer)

    def verify(self, first: int = 0, count: int | None = None) -> list[tuple[int, Exception]]:
        """Reads and checks what pages `first` to `first + count` (None: all) are stored in, past every cache.

        Returns the damage: pairs of a page's number and the error that reading it gives. Threads may share a store's
        pages. Of a file that is not umappy's a page is `page_size` bytes, and all frames it needs are decoded.
        """
        pages = -(-self.size // self.page_size)
        end = pages if count is None else first + count
        if not 0 <= first <= end <= pages:
            raise ValueError(f"pages {first} to {end} are not all among the {pages} of {self!r}")
        damage: list[tuple[int, Exception]] = []
        while first < end:
            page, error = self._verify_run(first, end - first)
            if error is None:
                break
            damage.append((page, error))
            first = page + 1
        return damage

    def verify_frames(self) -> None:
        """Checks what belongs to no page: superblocks, and the chain of frames that makes it a zstd file.

        StoreCorruptError names the first that is damaged. Of a file that is not umappy's there is nothing more.
        """
        if self.foreign is not None:
            return
        record = ffi.new("um_error *")
        with self._borrow() as handle:
            if lib.um_zstd_store_verify_frames(handle, record) < 0:
                raise make_record_error(record)

    def __repr__(self) -> str:
        if not hasattr(self, "size"):
            return f"<ZstdStore {self.path!r}, not open>"
        state = ", closed" if self.closed else ""
        return f"<ZstdStore {self.path!r}, mode {self.mode!r}, {format_size(self.size)}{state}>"

    def __reduce__(self) -> tuple[object, ...]:
        """The recipe: the same file, opened for reading."""
        return _open_again, (self.path, self._dictionary if self.foreign is not None else b"")

    def _open_native(self, size: int | None, page_size: int | None) -> um_store | None:
        """None where the file is not umappy's own."""
        name = ffi.new("char[]", os.fsencode(self.path))
        given = self._dictionary if self.mode in {"w+", "x"} else b""
        with ffi.from_buffer("char[]", given) as memory:
            options = ffi.new(
                "um_zstd_options *",
                {
                    "path": name,
                    "writable": self.mode != "r",
                    "create": self.mode in {"w+", "x"},
                    "truncate": self.mode == "w+",
                    "exclusive": self.mode == "x",
                    "lock": self._lock,
                    "recover": self._recover,
                    "level": self._level,
                    "page_size": page_size or 0,
                    "size": TO_END if size is None else size,
                    "dictionary": memory,
                    "dictionary_size": len(given),
                },
            )
            store, record = ffi.new("um_store **"), ffi.new("um_error *")
            result = lib.um_zstd_store_open(options, store, record)
        if result == -errno.EMEDIUMTYPE:
            return None
        if result < 0:
            raise make_open_error(record)
        return store[0]

    def _adopt(self, page_size: int | None) -> None:
        if self._dictionary:
            raise ValueError(
                f"{self.path!r} is not umappy's own and needs a dictionary: `umappy pack --dictionary` makes a file of "
                "it that can be written"
            )
        record = ffi.new("um_error *")
        if lib.um_zstd_adopt(os.fsencode(self.path), page_size or PAGE_SIZE_DEFAULT, record) < 0:
            raise make_open_error(record)

    def _check_dictionary(self) -> None:
        if self.read_dictionary() != self._dictionary:
            self.close()
            raise ValueError(
                f"dictionary is not the one that {self.path!r} keeps: leave it out, or `umappy pack --dictionary` to "
                "make a file with another"
            )

    def _check_foreign(self, handle: um_store, size: int | None) -> None:
        held = lib.um_store_size(handle)
        if size is not None and size > held:
            lib.um_store_close(handle, ffi.new("um_error *"))
            raise ValueError(
                f"size is {size}, but {self.path!r} holds {held} bytes; it grows when it is opened with mode='r+'"
            )

    def _look(self) -> ZstdInfo:
        found = ffi.new("um_zstd_info *")
        assert self._handle is not None
        lib.um_zstd_store_info(self._handle, found)
        return ZstdInfo(
            size=found.size,
            file_size=found.length,
            allocated=found.allocated,
            page_size=found.page_size,
            packed=bool(found.packed),
            generation=found.generation,
            base=found.base,
            base_live=found.base_live,
            log=found.log,
            log_live=found.log_live,
            index_memory=found.index_memory,
            dictionary_size=found.dictionary_size,
            foreign_frames=found.foreign_frames,
            segments=found.segments,
            format_version=found.version,
            level=found.level,
            damaged_superblocks=found.damaged,
            uuid=UUID(bytes=bytes(ffi.buffer(found.uuid))),
        )

    def _verify_run(self, first: int, count: int) -> tuple[int, Exception | None]:
        """The first damaged page of these, and its error."""
        if self.foreign is not None:
            return self._read_run(first, count)
        page, record = ffi.new("uint64_t *"), ffi.new("um_error *")
        with self._borrow() as handle:
            if lib.um_zstd_store_verify(handle, first, count, page, record) < 0:
                return page[0], make_record_error(record)
        return first, None

    def _read_run(self, first: int, count: int) -> tuple[int, Exception | None]:
        buffer = bytearray(self.page_size)
        for page in range(first, first + count):
            offset = page * self.page_size
            try:
                self.read_into(offset, memoryview(buffer)[: min(self.page_size, self.size - offset)])
            except OSError as error:
                return page, error
        return first, None


def _choose_foreign_page(info: ForeignInfo) -> int:
    """As large as frames usually are: less would be decoded in vain."""
    mean = info.size // max(1, info.frames)
    return max(PAGE_SIZE_MIN, min(PAGE_SIZE_DEFAULT, 1 << max(0, mean.bit_length() - 1)))


def _open_again(path: str, dictionary: bytes) -> ZstdStore:
    return ZstdStore(path, "r", dictionary=dictionary or None)

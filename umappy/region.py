"""The region: a store, mapped into memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import operator
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from umappy import _delivery
from umappy._engine import ffi, lib
from umappy._handle import Handle
from umappy._ranges import Extent, read_pages, read_ranges, read_slice
from umappy.errors import OP_MEMORY, ClosedError, StoreError, make_forked_error, make_store_error
from umappy.pager import Pager, make_budget_error
from umappy.sizes import format_size
from umappy.stats import Stats, make_stats
from umappy.stores.base import Store
from umappy.stores.native import make_record_error

if TYPE_CHECKING:
    from umappy._engine import um_job, um_region, um_store

WAIT_SLICE_MS = 100
"""How long a call stays in C before Python may look for signals."""
GATE_MS = 100
CLOSE_ATTEMPTS = 100
MAP_NORESERVE = 0x4000
_ADVICE = {
    "normal": lib.UM_ADVISE_NORMAL,
    "sequential": lib.UM_ADVISE_SEQUENTIAL,
    "random": lib.UM_ADVISE_RANDOM,
    "willwrite": lib.UM_ADVISE_WILLWRITE,
}
_MADVISE = {
    mmap.MADV_NORMAL: "normal",
    mmap.MADV_SEQUENTIAL: "sequential",
    mmap.MADV_RANDOM: "random",
    mmap.MADV_WILLNEED: "willneed",
    mmap.MADV_DONTNEED: "dontneed",
}

# Called with the GIL held, unlike everything called through `lib`: from here until mmap.close has looked at the
# exports no other Python thread may run. The engine waits only for system calls meanwhile, never for I/O.
_gate_close = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)(
    int(ffi.cast("uintptr_t", ffi.addressof(lib, "um_region_gate_close")))
)

_mapping_lock = threading.Lock()


def _forget_in_child() -> None:
    global _mapping_lock
    _mapping_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)

_Region = TypeVar("_Region", bound="Region")


class Region(mmap.mmap):
    """A mapped store: `len(region)` bytes that are filled as they are touched and evicted as memory runs short.

    It is an `mmap.mmap`, so everything that takes a buffer takes it: `numpy.frombuffer(region, dtype)`, `memoryview`,
    ctypes, C libraries. In mode "r" the buffer is read-only. `umappy.umap` makes regions; a region owns its store and
    closes it.

    When the store cannot be read the page holds 0xFF bytes and a StoreError is raised in the thread that touched it,
    soon after; `check()` and every other method raise it at once. Such a page is never written back.

    In a forked child the memory is inaccessible and methods raise ForkedRegionError.
    """

    _handle: Handle[um_region]
    _store: Store
    _store_pointer: um_store
    _pager: Pager
    _page_size: int
    _address: int
    _writable: bool
    _close_lock: threading.RLock
    _untold: Exception | None

    def __new__(cls, *args: object, **keywords: object) -> Self:
        raise TypeError("regions are made by umappy.umap(store, size)")

    @classmethod
    def _map(cls, store: Store, size: int, *, writable: bool, page_size: int, pager: Pager, readahead: bool) -> Self:
        self = _make_mapping(cls, size, writable)
        view = ffi.from_buffer(self)
        address = int(ffi.cast("uintptr_t", view))
        ffi.release(view)
        out = ffi.new("um_region **")
        options = ffi.new("um_region_options *", {"page_size": page_size, "writable": writable, "readahead": readahead})
        store_pointer = store._release()
        try:
            with pager._handle.use() as pager_pointer:
                code = lib.um_region_create(
                    pager_pointer, store_pointer, ffi.cast("void *", address), size, options, out
                )
            if code:
                _raise_create(code, size, page_size, pager)
            self._store, self._store_pointer, self._pager = store, store_pointer, pager
            self._page_size, self._address, self._writable = page_size, address, writable
            self._close_lock = threading.RLock()
            self._handle = Handle(out[0], "the region")
        except BaseException:
            if out[0] != ffi.NULL:  # Ctrl-C, a moment ago
                _gate_close(int(ffi.cast("uintptr_t", out[0])), True, GATE_MS)
            mmap.mmap.close(self)
            if out[0] != ffi.NULL:
                lib.um_region_forget(out[0])
            store._reclaim(store_pointer)
            raise
        _delivery.watch(self)
        return self

    @property
    def store(self) -> Store:
        """The store behind the region; the region closes it."""
        return self._store

    @property
    def pager(self) -> Pager:
        return self._pager

    @property
    def page_size(self) -> int:
        """Bytes that are filled and evicted together."""
        return self._page_size

    @property
    def mode(self) -> str:
        """ "r" or "r+"."""
        return "r+" if self._writable else "r"

    @property
    def address(self) -> int:
        """Where the region begins in memory."""
        return self._address

    def size(self) -> int:
        """Returns the size in bytes, as `len` does."""
        return len(self)

    def flush(self, offset: SupportsIndex = 0, size: SupportsIndex | None = None, /) -> None:
        """Writes dirty pages of the range to the store and makes them durable.

        Every write to the range that completed before the call survives a power cut when it returns. `offset` and
        `size` are bytes; default: all. Raises StoreError when the store does not take them; they stay dirty and are
        kept. Does nothing in mode "r".
        """
        start, length = self._check_range(offset, size)
        with self._handle.use() as region:
            if self._writable:
                self._run(lib.um_region_flush_start(region, start, length, True))
        self.check()

    def evict(self, what: slice | None = None) -> int:
        """Takes pages out of memory, writing dirty ones to the store first; returns how many bytes
        left, counted in whole pages.

        `what` is a slice of bytes (default: all); pages that lie partly inside count. Pages written to meanwhile stay.
        """
        start, length = self._check_slice(what)
        with self._handle.use() as region:
            pages = self._run(lib.um_region_evict_start(region, start, length))
        self.check()
        return pages * self._page_size

    def prefetch(self, what: slice | Sequence[slice] | ArrayLike | None = None, *, wait: bool = False) -> None:
        """Fills pages before anyone asks, in runs of neighbours, and returns at once unless `wait`.

        `what` is a slice of bytes (default: all), a list or tuple of slices, or an array or sequence of byte offsets,
        in any order, negative ones counting from the end: the pages they lie in are fetched in rising order, by all
        fillers. It is a hint: of more than half of the budget only the first half is fetched, and pages that cannot be
        read are left for the fault that asks for them. `umappy.take` does it for an array's indices.
        """
        limit = self._prefetch_limit()
        if what is None or isinstance(what, slice):
            start, length = self._check_slice(what)
            with self._handle.use() as region:
                self._finish_prefetch(lib.um_region_prefetch_start(region, start, min(length, limit)), wait)
        else:
            self._prefetch_pages(read_pages(what, self._extent, max(1, limit // self._page_size)), wait=wait)
        self.check()

    def _prefetch_limit(self) -> int:
        """Bytes: half of what the budget can hold of pages, and no less than one page."""
        stats = self._pager.stats()
        return max(self._page_size, (stats.memory - stats.overhead) // 2)

    def _prefetch_pages(self, pages: NDArray[np.uint64], *, wait: bool) -> None:
        """`pages` are sorted, each once."""
        with self._handle.use() as region:
            buffer = ffi.from_buffer("uint64_t[]", pages)
            self._finish_prefetch(lib.um_region_prefetch_pages_start(region, buffer, len(pages)), wait)

    def _gather(
        self, starts: NDArray[np.uint64], values: NDArray[np.uint8], places: NDArray[np.uint64] | None = None
    ) -> int:
        """Copies the bytes that begin at `starts` (bytes, rising) to `values`, shape (items, bytes of an item).

        `places` says to which row of `values` each goes; None: in order. Leaves absent pages absent. Returns how many
        it copied: fewer where the store or the budget does not suit.
        """
        done = ffi.new("uint64_t *")
        code = 0
        with self._handle.use() as region:
            offsets, out = ffi.from_buffer("uint64_t[]", starts), ffi.from_buffer(values, require_writable=True)
            where = ffi.NULL if places is None else ffi.from_buffer("uint64_t[]", places)
            while done[0] < len(starts) and code == 0:
                code = lib.um_region_gather(
                    region, offsets, len(starts), values.shape[1], out, where, len(values), WAIT_SLICE_MS, done
                )
        if code not in (0, -errno.EAGAIN, -errno.EOPNOTSUPP):
            raise make_store_error(-code, op=OP_MEMORY)
        return done[0]

    def _finish_prefetch(self, job: um_job, wait: bool) -> None:
        if wait:
            self._run(job)
        else:
            lib.um_job_release(_check_job(job))

    def advise(self, hint: str, what: slice | Sequence[slice] | NDArray[Any] | None = None) -> None:
        """Tells the pager how a part of the region will be used. Advice changes speed, never bytes.

        `hint` is one of
            "normal": nothing is known (takes earlier advice back);
            "sequential": once, in rising order;
            "random": here and there, so that neighbours are not worth reading;
            "willwrite": whole pages will be written, so they are filled ready for that and count as dirty;
            "willneed": soon: `prefetch`, without waiting;
            "dontneed": not soon: `evict`, which writes dirty pages to the store first.
        `what` is a slice of bytes (default: all), a list or tuple of slices, or an array over the region, which stands
        for the memory from its first to its last byte. Pages that lie partly inside count; for "willwrite" they do not.

        The first four hold for the range until other advice for it. Raises ValueError for other hints, and when there
        are more separate ranges than the pager remembers (some 4096).
        """
        if hint not in _ADVICE and hint not in ("willneed", "dontneed"):
            raise ValueError(
                f"hint is {hint!r}: wants one of {', '.join(map(repr, (*_ADVICE, 'willneed', 'dontneed')))}"
            )
        self._check_range(0, None)
        ranges = read_ranges(what, self._extent)
        if hint == "willneed":
            self.prefetch([slice(start, start + length) for start, length in ranges])
        elif hint == "dontneed":
            for start, length in ranges:
                self.evict(slice(start, start + length))
        else:
            self._set_advice(hint, ranges)
            self.check()

    def _set_advice(self, hint: str, ranges: list[tuple[int, int]]) -> None:
        for start, length in ranges:
            with self._handle.use() as region:
                code = lib.um_region_advise(region, start, length, _ADVICE[hint])
            if code == -errno.EACCES:
                raise TypeError(f"hint is {hint!r}, but the region is read-only; map it with mode='r+'")
            if code == -errno.ENOSPC:
                raise ValueError(
                    f"hint {hint!r} for {len(ranges)} ranges: too many separate ranges with advice of their own; give "
                    "fewer and larger ones, or take back earlier advice with advise('normal')"
                )
            if code == -errno.ENOMEM:
                raise MemoryError("no memory for advice within the budget")
            if code:
                raise make_store_error(-code, op=OP_MEMORY, offset=start, length=length)

    def overwrite(self, offset: SupportsIndex, data: Any) -> None:
        """Writes `data`, any contiguous buffer, at byte `offset`, without reading pages that lie wholly inside.

        The same as `region[offset:offset + n] = data` for whoever reads the region; faster where whole pages are
        written that are not in memory, as the store need not give what they held. Raises ValueError when it does not
        fit, TypeError in mode "r", TimeoutError when no memory comes free.
        """
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # shapes with a zero cannot be cast
        start = operator.index(offset)
        if start < 0 or start + view.nbytes > len(self):
            raise ValueError(
                f"{view.nbytes} bytes at offset {start} do not fit a region of {len(self)} bytes; offsets count from 0"
            )
        if not self._writable:
            raise TypeError("the region is read-only; map it with mode='r+'")
        done = ffi.new("uint64_t *")
        timeout_ms = 1000
        with self._handle.use() as region, ffi.from_buffer(view) as buffer:
            stalled = -1
            while (
                code := lib.um_region_overwrite(region, start, buffer, view.nbytes, timeout_ms, done)
            ) == -errno.ETIMEDOUT:
                if done[0] == stalled:
                    self.check()
                    raise TimeoutError(
                        f"no memory came free for {timeout_ms / 1000:.0f} s within the budget of "
                        f"{format_size(self._pager.memory)}: the store is too slow or failing"
                    )
                stalled = done[0]
        if code:
            raise make_store_error(-code, op=OP_MEMORY, offset=start, length=view.nbytes)
        self.check()

    def residency(self, offset: SupportsIndex = 0, size: SupportsIndex | None = None) -> NDArray[np.uint8]:
        """Returns a `Residency` value for each page of the byte range: shape (pages,), dtype uint8."""
        start, length = self._check_range(offset, size)
        first = start // self._page_size
        count = -(-(start + length) // self._page_size) - first if length else 0
        out = np.zeros(count, np.uint8)
        with self._handle.use() as region:
            lib.um_region_residency(region, first, count, ffi.from_buffer("uint8_t[]", out, require_writable=True))
        return out

    def stats(self) -> Stats:
        """Returns the region's counters; `memory`, `used`, `peak_used` and `overhead` are its pager's."""
        raw = ffi.new("um_stats *")
        with self._handle.use() as region:
            lib.um_region_stats(region, raw)
        return make_stats(raw)

    def check(self) -> None:
        """Raises the oldest failure that nobody was told of yet: of a fill, or of writing back dirty pages."""
        record = ffi.new("um_error *")
        with self._handle.use() as region:
            found = lib.um_region_error_next(region, record)
        error = make_record_error(record) if found else _delivery.take_back(self)
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: the circle would keep the region alive

    @property
    def errors(self) -> tuple[Exception, ...]:
        """The last failures, at most 16, the oldest first, told or not."""
        record = ffi.new("um_error *")
        kept: list[Exception] = []
        with self._handle.use() as region:
            while lib.um_region_error_at(region, len(kept), record):
                kept.append(make_record_error(record))
        return tuple(kept)

    def retry(self) -> int:
        """Drops pages that hold a failure, so that the next touch reads the store again; returns how many."""
        with self._handle.use() as region:
            return lib.um_region_retry(region)

    def madvise(self, option: SupportsIndex, start: SupportsIndex = 0, length: SupportsIndex | None = None, /) -> None:
        """`mmap.madvise` through the pager, which is `advise`: MADV_DONTNEED writes dirty pages back first.

        It takes MADV_NORMAL, _RANDOM, _SEQUENTIAL, _WILLNEED and _DONTNEED; others are a ValueError.
        """
        begin, size = self._check_range(start, length)
        what, advice = slice(begin, begin + size), operator.index(option)
        if advice not in _MADVISE:
            raise ValueError(
                f"madvise({advice}): a region takes MADV_NORMAL, _RANDOM, _SEQUENTIAL, _WILLNEED and _DONTNEED"
            )
        self.advise(_MADVISE[advice], what)

    def resize(self, newsize: SupportsIndex, /) -> NoReturn:
        raise TypeError("a region cannot be resized; close it and umap the store with the new size")

    def close(self, *, discard: bool = False) -> None:
        """Flushes, unmaps, and closes the store. Does nothing when it is closed.

        Raises BufferError while arrays or views of the region live, StoreError when the store does not take the dirty
        pages; in both cases the region stays open and everything goes on working. `discard=True` gives the dirty
        pages up. A failure that nobody was told of is raised once, after unmapping.
        """
        if self._handle.is_forked:
            super().close()
            return
        with self._close_lock:
            if self._handle.is_closed:
                return
            untold = self._flush_and_unmap(discard)
        record = ffi.new("um_error *")
        if lib.um_store_close(self._store_pointer, record) < 0 and untold is None:
            untold = make_record_error(record)
        if untold is not None:
            raise untold

    def _flush_and_unmap(self, discard: bool) -> Exception | None:
        """Returns a failure that is still to be told. Pages that are dirtied between flush and gate: both again."""
        for _ in range(CLOSE_ATTEMPTS):
            with self._handle.use() as region:
                lib.um_region_prefetch_cancel(region)
                if self._writable and not discard:
                    self._run(lib.um_region_flush_start(region, 0, len(self), True))
            if self._try_unmap(discard):
                return self._untold
            if self._has_views():
                break
        raise BufferError("cannot close the region: arrays or views of it live, or its pages are still being touched")

    def _try_unmap(self, discard: bool) -> bool:
        """False: pages are dirty or filling again. BufferError: arrays or views live."""
        region = self._handle.begin_close()
        assert region is not None
        pointer = int(ffi.cast("uintptr_t", region))
        try:
            if _gate_close(pointer, discard, GATE_MS) == 0:
                super().close()
        finally:
            if self.closed:
                self._untold = None if discard else _take_error(region)
                lib.um_region_forget(region)
            else:
                lib.um_region_gate_open(region)
            self._handle.end_close(closed=self.closed)
        return self.closed

    def _has_views(self) -> bool:
        """mmap does not tell; but before it looks at the size it refuses to resize what has views."""
        try:
            super().resize(-1)
        except BufferError:
            return True
        except (ValueError, TypeError):  # the size is wrong; one that is only read has none that is right
            pass
        return False

    def __enter__(self) -> Self:
        if self.closed:
            raise ClosedError("the region is closed")
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        try:
            self.close()
        except Exception as error:
            if not isinstance(value, BaseException):
                raise
            value.add_note(f"and the region could not be closed: {error}")

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is None or handle.is_closed or handle.is_forked:
            return
        if sys.is_finalizing():
            # The engine's last flush is still to come. It has a deadline, which closing here has not.
            _keep_mapped(self)
            return
        try:
            self.close()
        except BaseException as error:
            if self.closed:
                _delivery.log.error("a region that nobody refers to any more met: %s", error)
                return
            # Its store may yet take the dirty pages, at the last flush.
            _keep_mapped(self)
            _delivery.log.error("a region that nobody refers to any more keeps dirty pages until exit: %s", error)

    def __repr__(self) -> str:
        if self.closed:
            return "<umappy.Region closed>"
        return (
            f"<umappy.Region of {format_size(len(self))}, mode={self.mode!r}, "
            f"page_size={format_size(self._page_size)}, {self._store!r}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a region cannot be pickled; send its store's path and umap it there")

    def _run(self, job: um_job) -> int:
        """Waits for a job in slices, so that Ctrl-C is heard; the job itself goes on. Returns its pages."""
        record = ffi.new("um_error *")
        _check_job(job)
        try:
            while (code := lib.um_job_wait(job, WAIT_SLICE_MS, record)) == -errno.ETIMEDOUT and not record.code:
                pass
            if code:
                raise make_record_error(record)
            return lib.um_job_pages(job)
        finally:
            lib.um_job_release(job)

    def _take_fault_error(self) -> tuple[int, StoreError] | None:
        record = ffi.new("um_error *")
        try:
            with self._handle.use(wait=False) as region:
                if not lib.um_region_error_fault(region, record):
                    return None
        except ClosedError:
            return None
        error = make_record_error(record)
        assert isinstance(error, StoreError)
        return record.thread_id, error

    def _check_range(self, offset: SupportsIndex, size: SupportsIndex | None) -> tuple[int, int]:
        if self._handle.is_forked:
            raise make_forked_error()
        if self.closed:
            raise ClosedError("the region is closed")
        start = operator.index(offset)
        length = len(self) - start if size is None else operator.index(size)
        if start < 0 or length < 0 or start + length > len(self):
            raise ValueError(f"{length} bytes at offset {start} do not lie in a region of {len(self)} bytes")
        return start, length

    def _check_slice(self, what: slice | None) -> tuple[int, int]:
        if what is None:
            return self._check_range(0, None)
        if not isinstance(what, slice):
            raise TypeError(f"{what!r}: wants a slice of bytes, as in slice(start, stop)")
        self._check_range(0, None)
        return read_slice(what, self._extent)

    @property
    def _extent(self) -> Extent:
        return Extent(self._address, len(self), self._page_size)


def _make_mapping(cls: type[_Region], size: int, writable: bool) -> _Region:
    """The mapping, unpopulated even under mlockall(MCL_FUTURE), which would fill all of it with memory."""
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    with _mapping_lock:
        locked = lib.um_memory_locked()
        if locked:
            lib.um_memory_lock_on_fault(True)
        try:
            return mmap.mmap.__new__(cls, -1, size, flags=flags, prot=prot)
        finally:
            if locked:
                lib.um_memory_lock_on_fault(False)


def _keep_mapped(region: Region) -> None:
    """A reference nobody ever takes back. Any other ends with the interpreter, and the end of the object unmaps the
    range: dirty pages would be gone, and the engine left with memory that is not its own."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(region))


def _check_job(job: um_job) -> um_job:
    if job == ffi.NULL:
        raise MemoryError("no memory for a job of the engine")
    return job


def _take_error(region: um_region) -> Exception | None:
    record = ffi.new("um_error *")
    return make_record_error(record) if lib.um_region_error_next(region, record) else None


def _raise_create(code: int, size: int, page_size: int, pager: Pager) -> NoReturn:
    if code == -errno.ENOBUFS:
        stats = pager.stats()
        raise make_budget_error(pager.memory, page_size, stats.fillers, stats.evictors)
    raise OSError(-code, f"cannot map {format_size(size)}: {os.strerror(-code)}")

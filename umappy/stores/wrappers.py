"""Wrapper stores: faults on purpose, and a log of the calls. They stack.

A wrapper owns the store that it wraps. Its own controls (`set`, `calls`, `take`) go on working while a region owns the
wrapper and after it was closed.
"""

from __future__ import annotations

import errno as errno_codes
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, SupportsIndex, TypeAlias

from umappy._engine import ffi, lib
from umappy.sizes import parse_size
from umappy.stores.base import Store
from umappy.stores.native import NativeStore

if TYPE_CHECKING:
    from umappy._engine import Out, um_fault_options, um_log_record, um_store

Op: TypeAlias = Literal["read", "write", "flush"]

OPS: dict[Op, int] = {"read": lib.UM_OP_READ, "write": lib.UM_OP_WRITE, "flush": lib.UM_OP_FLUSH}
OP_NAMES = {number: name for name, number in OPS.items()}
FOR_EVER = (1 << 64) - 1
DELAY_MAX_SECONDS = 3600.0


class _Wrapper(NativeStore):
    """A store before `inner`, which it owns and closes.

    `wrap` makes the wrapper's native store of the inner one; it returns 0 or -errno.
    """

    def __init__(self, inner: NativeStore, wrap: Callable[[um_store, Out[um_store]], int]) -> None:
        if not isinstance(inner, Store):
            raise TypeError(f"inner is {inner!r}: wants a store, such as FileStore(path)")
        inside, store = inner._release(), ffi.new("um_store **")
        result = wrap(inside, store)
        if result < 0:
            inner._reclaim(inside)
            raise OSError(-result, os.strerror(-result))
        handle = store[0]
        super().__init__(handle)
        self._inner = inner
        self.page_size = inner.page_size
        # Our own reference: the region that owns the store may close it while `set` runs.
        lib.um_wrapper_retain(handle)
        self._control = ffi.gc(handle, lib.um_wrapper_release)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._inner!r}>"


@dataclass(frozen=True)
class _Strike:
    """Which calls are struck, and how. Raises ValueError and TypeError for what cannot be."""

    op: Op | Iterable[Op]
    code: int
    delay_seconds: float
    skip: int
    count: int | None
    every: int
    offset: SupportsIndex | str
    size: SupportsIndex | str | None

    def make_options(self) -> um_fault_options:
        bits = 0
        for op in [self.op] if isinstance(self.op, str) else self.op:
            if op not in OPS:
                raise ValueError(f"op is {op!r}: wants one or several of {', '.join(map(repr, OPS))}")
            bits |= 1 << OPS[op]
        if not 0 <= self.delay_seconds <= DELAY_MAX_SECONDS:
            raise ValueError(f"delay_seconds is {self.delay_seconds!r}: wants 0 to {DELAY_MAX_SECONDS:g}")
        for name, value, least in (("skip", self.skip, 0), ("count", self.count, 0), ("every", self.every, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value!r}: wants at least {least}")
        offset = parse_size(self.offset, "offset")
        return ffi.new(
            "um_fault_options *",
            {
                "ops": bits,
                "code": self.code,
                "delay_ns": round(self.delay_seconds * 1e9),
                "skip": self.skip,
                "count": FOR_EVER if self.count is None else self.count,
                "every": self.every,
                "offset": offset,
                # Length 0 means every call to the engine; to a user, size 0 is no byte at all.
                "length": FOR_EVER - offset if self.size is None else _parse_stretch(self.size),
            },
        )


class _FaultStore(_Wrapper):
    def __init__(self, inner: NativeStore, strike: _Strike) -> None:
        options = strike.make_options()
        super().__init__(inner, lambda inside, store: lib.um_fault_store_open(inside, options, store))

    @property
    def calls(self) -> int:
        """Calls so far that were of the ops and bytes in question, struck or not."""
        return lib.um_fault_store_calls(self._control)

    def clear(self) -> None:
        """From now on all calls pass."""
        lib.um_fault_store_set(self._control, ffi.new("um_fault_options *", {"ops": 0}))

    def _set(self, strike: _Strike) -> None:
        lib.um_fault_store_set(self._control, strike.make_options())


class DelayStore(_FaultStore):
    """Passes calls on late: `seconds` (0 to 3600) after they came, slept in the calling thread without the GIL.

    `op` is "read", "write", "flush" or several of them. After `skip` calls each `every`-th is late, `count` of them in
    all (None: no end). With `offset` and `size`, only reads and writes that touch these bytes count.
    """

    def __init__(
        self,
        inner: NativeStore,
        seconds: float,
        *,
        op: Op | Iterable[Op] = ("read", "write", "flush"),
        skip: int = 0,
        count: int | None = None,
        every: int = 1,
        offset: SupportsIndex | str = 0,
        size: SupportsIndex | str | None = None,
    ) -> None:
        super().__init__(inner, _Strike(op, 0, seconds, skip, count, every, offset, size))

    def set(
        self,
        seconds: float,
        *,
        op: Op | Iterable[Op] = ("read", "write", "flush"),
        skip: int = 0,
        count: int | None = None,
        every: int = 1,
        offset: SupportsIndex | str = 0,
        size: SupportsIndex | str | None = None,
    ) -> None:
        """Takes the place of what was asked for at the start; `skip` and `count` begin anew."""
        self._set(_Strike(op, 0, seconds, skip, count, every, offset, size))


class ErrorStore(_FaultStore):
    """Fails calls with `errno` (or one of umappy.errors' codes, such as ETRUNCATED) before they reach the store.

    `op` is "read", "write", "flush" or several of them. After `skip` calls each `every`-th fails, `count` of them in
    all (None: no end), `delay_seconds` after it came. With `offset` and `size`, only reads and writes that touch these
    bytes count.
    """

    def __init__(
        self,
        inner: NativeStore,
        *,
        op: Op | Iterable[Op] = "read",
        errno: int = errno_codes.EIO,
        delay_seconds: float = 0.0,
        skip: int = 0,
        count: int | None = None,
        every: int = 1,
        offset: SupportsIndex | str = 0,
        size: SupportsIndex | str | None = None,
    ) -> None:
        super().__init__(inner, _Strike(op, _check_code(errno), delay_seconds, skip, count, every, offset, size))

    def set(
        self,
        *,
        op: Op | Iterable[Op] = "read",
        errno: int = errno_codes.EIO,
        delay_seconds: float = 0.0,
        skip: int = 0,
        count: int | None = None,
        every: int = 1,
        offset: SupportsIndex | str = 0,
        size: SupportsIndex | str | None = None,
    ) -> None:
        """Takes the place of what was asked for at the start; `skip` and `count` begin anew."""
        self._set(_Strike(op, _check_code(errno), delay_seconds, skip, count, every, offset, size))


@dataclass(frozen=True)
class StoreCall:
    """One call that reached a store."""

    op: Op
    offset: int
    """Bytes from the start of the store; 0 for a flush."""
    size: int
    """Bytes; 0 for a flush."""
    start_seconds: float
    """On the clock of time.monotonic()."""
    took_seconds: float
    code: int
    """The errno, or code of umappy.errors, that it failed with; 0: it did not."""
    thread_id: int
    """As threading.get_native_id() tells it; fillers and evictors are threads too."""


class LogStore(_Wrapper):
    """Remembers the newest `capacity` calls, in the order in which they ended."""

    lost: int
    """Calls that were overwritten before anybody took them."""

    def __init__(self, inner: NativeStore, capacity: int = 1 << 16) -> None:
        if not 1 <= capacity <= 1 << 32:
            raise ValueError(f"capacity is {capacity!r}: wants 1 to 2**32 calls")
        super().__init__(inner, lambda inside, store: lib.um_log_store_open(inside, capacity, store))
        self.lost = 0
        self._records = ffi.new("um_log_record[]", min(capacity, 1024))

    def take(self) -> list[StoreCall]:
        """Returns the calls since the last `take`, oldest first. One thread at a time."""
        calls: list[StoreCall] = []
        lost = ffi.new("uint64_t *")
        while count := lib.um_log_store_take(self._control, self._records, len(self._records), lost):
            self.lost += lost[0]
            calls.extend(map(_make_call, self._records[0:count]))
        return calls


def _make_call(record: um_log_record) -> StoreCall:
    return StoreCall(
        op=OP_NAMES[record.op],
        offset=record.offset,
        size=record.length,
        start_seconds=record.start_ns / 1e9,
        took_seconds=record.took_ns / 1e9,
        code=record.code,
        thread_id=record.thread_id,
    )


def _parse_stretch(size: SupportsIndex | str) -> int:
    count = parse_size(size)
    if count == 0:
        raise ValueError("size is 0: wants the bytes that count, or None for all")
    return count


def _check_code(code: int) -> int:
    if not 0 < code < 1 << 31:
        raise ValueError(f"errno is {code!r}: wants a number above 0, such as errno.EIO")
    return code

"""DelayStore, ErrorStore, LogStore: the contract through them, exact counts, and control while others own them."""

import errno
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from umappy import errors
from umappy._engine import ffi, lib
from umappy.stores import DelayStore, ErrorStore, FileStore, LogStore, Store
from umappy.stores.testing import SIZE, StoreContract, make_bytes, read


class TestDelay(StoreContract):
    def create(self, folder: Path, size: int) -> Store:
        return DelayStore(FileStore(folder / "x", "w+", size=size), 0.0001)

    def reopen(self, folder: Path, *, writable: bool) -> Store:
        return DelayStore(FileStore(folder / "x", "r+" if writable else "r"), 0.0001)


class TestErrorThatNeverStrikes(StoreContract):
    def create(self, folder: Path, size: int) -> Store:
        return ErrorStore(FileStore(folder / "x", "w+", size=size), count=0)

    def reopen(self, folder: Path, *, writable: bool) -> Store:
        return ErrorStore(FileStore(folder / "x", "r+" if writable else "r"), count=0)


class TestLog(StoreContract):
    def create(self, folder: Path, size: int) -> Store:
        return LogStore(FileStore(folder / "x", "w+", size=size), capacity=3)

    def reopen(self, folder: Path, *, writable: bool) -> Store:
        return LogStore(FileStore(folder / "x", "r+" if writable else "r"), capacity=3)


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[FileStore]:
    with FileStore(tmp_path / "x", "w+", size=SIZE) as store:
        yield store


def count_failures(store: Store, calls: int, offset: int = 0) -> list[int]:
    """Which of that many reads of one byte fail."""
    failed = []
    for i in range(calls):
        try:
            store.read_into(offset, bytearray(1))
        except errors.StoreError:
            failed.append(i)
    return failed


def test_error_carries_errno_op_offset_and_length(inner: FileStore) -> None:
    with ErrorStore(inner, op="write", errno=errno.ENOSPC) as store:
        with pytest.raises(errors.StoreFullError) as caught:
            store.write(100, bytes(50))
        failure = caught.value
        assert (failure.errno, failure.op, failure.offset, failure.length) == (errno.ENOSPC, "write", 100, 50)


def test_error_with_a_code_of_umappy_raises_its_class(inner: FileStore) -> None:
    with ErrorStore(inner, errno=errors.ETRUNCATED) as store, pytest.raises(errors.StoreTruncatedError):
        read(store)


def test_error_keeps_the_call_from_the_inner_store(inner: FileStore) -> None:
    with ErrorStore(inner, op="write") as store:
        with pytest.raises(errors.StoreError):
            store.write(0, b"abc")
        assert read(store, 0, 3) == bytes(3)


@pytest.mark.parametrize("op", ["read", "write", "flush"])
def test_error_of_one_op_lets_the_others_pass(inner: FileStore, op: str) -> None:
    calls = {"read": lambda: read(store), "write": lambda: store.write(0, b"a"), "flush": lambda: store.flush()}
    with ErrorStore(inner, op=op) as store:
        for name, call in calls.items():
            if name == op:
                with pytest.raises(errors.StoreError):
                    call()
            else:
                call()


@pytest.mark.parametrize(
    ("options", "failed"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"skip": 7}, [7, 8, 9]),
        ({"count": 2}, [0, 1]),
        ({"skip": 3, "count": 1}, [3]),
        ({"every": 4}, [0, 4, 8]),
        ({"skip": 1, "every": 3, "count": 2}, [1, 4]),
        ({"count": 0}, []),
    ],
    ids=str,
)
def test_error_strikes_the_calls_asked_for(inner: FileStore, options: dict[str, int], failed: list[int]) -> None:
    with ErrorStore(inner, **options) as store:
        assert count_failures(store, 10) == failed
        assert store.calls == 10


@pytest.mark.parametrize(
    ("offset", "length", "struck"),
    [(99, 1, False), (99, 2, True), (100, 1, True), (149, 9, True), (150, 1, False), (0, SIZE, True)],
)
def test_error_of_a_stretch_strikes_calls_that_touch_it(
    inner: FileStore, offset: int, length: int, struck: bool
) -> None:
    with ErrorStore(inner, offset=100, size=50) as store:
        try:
            read(store, offset, length)
            failed = False
        except errors.StoreError:
            failed = True
        assert failed is struck
        assert store.calls == struck


def test_error_with_offset_alone_strikes_from_there_on(inner: FileStore) -> None:
    with ErrorStore(inner, offset=100) as store:
        assert count_failures(store, 1, offset=99) == []
        assert count_failures(store, 1, offset=SIZE - 1) == [0]


def test_error_after_clear_strikes_no_more(inner: FileStore) -> None:
    with ErrorStore(inner) as store:
        assert count_failures(store, 1) == [0]
        store.clear()
        assert count_failures(store, 3) == []


def test_error_after_set_counts_anew_and_calls_goes_on(inner: FileStore) -> None:
    with ErrorStore(inner, skip=2, count=1) as store:
        assert count_failures(store, 5) == [2]
        store.set(skip=1, count=1)
        assert count_failures(store, 5) == [1]
        assert store.calls == 10


def test_error_counts_are_exact_with_many_threads(inner: FileStore) -> None:
    threads, calls = 8, 500
    with ErrorStore(inner, skip=100, every=7, count=300) as store, ThreadPoolExecutor(threads) as pool:
        failures = sum(len(failed) for failed in pool.map(lambda _: count_failures(store, calls), range(threads)))
        assert failures == 300
        assert store.calls == threads * calls


def test_delay_takes_as_long_as_asked_without_the_gil(inner: FileStore) -> None:
    with DelayStore(inner, 0.2, op="read") as store, ThreadPoolExecutor(4) as pool:
        start = time.monotonic()
        list(pool.map(lambda _: read(store), range(4)))
        assert 0.2 <= time.monotonic() - start < 0.6


def test_delay_of_one_op_lets_the_others_pass_at_once(inner: FileStore) -> None:
    with DelayStore(inner, 30, op="flush") as store:
        start = time.monotonic()
        store.write(0, b"abc")
        read(store)
        assert time.monotonic() - start < 5


def test_delay_then_error_come_together(inner: FileStore) -> None:
    with ErrorStore(inner, delay_seconds=0.1) as store:
        start = time.monotonic()
        assert count_failures(store, 1) == [0]
        assert time.monotonic() - start >= 0.1


def test_log_holds_the_calls_in_order(inner: FileStore) -> None:
    with LogStore(inner) as store:
        store.write(10, bytes(20))
        read(store, 30, 40)
        store.flush()
        calls = store.take()
        assert [(c.op, c.offset, c.size, c.code) for c in calls] == [
            ("write", 10, 20, 0),
            ("read", 30, 40, 0),
            ("flush", 0, 0, 0),
        ]
        assert store.take() == []


def test_log_tells_when_how_long_and_who(inner: FileStore) -> None:
    with LogStore(DelayStore(inner, 0.05)) as store:
        before = time.monotonic()
        read(store)
        (call,) = store.take()
        assert before <= call.start_seconds <= time.monotonic() - call.took_seconds + 1e-6
        assert call.took_seconds >= 0.05
        assert call.thread_id == threading.get_native_id()


def test_log_tells_what_failed(inner: FileStore) -> None:
    with LogStore(ErrorStore(inner, errno=errno.EACCES)) as store:
        with pytest.raises(PermissionError):
            read(store)
        assert [call.code for call in store.take()] == [errno.EACCES]


def test_log_that_is_full_drops_the_oldest_and_counts_them(inner: FileStore) -> None:
    with LogStore(inner, capacity=4) as store:
        for offset in range(10):
            store.read_into(offset, bytearray(1))
        assert [call.offset for call in store.take()] == [6, 7, 8, 9]
        assert store.lost == 6


def test_log_with_many_threads_loses_nothing(inner: FileStore) -> None:
    with LogStore(inner, capacity=4000) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.read_into(i, bytearray(1)), range(4000)))
        assert sorted(call.offset for call in store.take()) == list(range(4000))
        assert store.lost == 0


def test_wrappers_stack(inner: FileStore) -> None:
    log = LogStore(ErrorStore(DelayStore(inner, 0.0), skip=1))
    with log:
        assert count_failures(log, 3) == [1, 2]
        assert [call.code for call in log.take()] == [0, errno.EIO, errno.EIO]


def test_wrapper_owns_its_inner_store(inner: FileStore, tmp_path: Path) -> None:
    store = DelayStore(inner, 0.0)
    with pytest.raises(errors.ClosedError, match="belongs to"):
        read(inner)
    store.close()
    FileStore(tmp_path / "x", "r+").close()


def test_wrapper_with_a_bad_option_leaves_the_inner_store_alone(inner: FileStore) -> None:
    with pytest.raises(ValueError, match="every is 0"):
        ErrorStore(inner, every=0)
    assert read(inner, 0, 1) == b"\0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op": "open"}, "op is 'open'"),
        ({"errno": 0}, "errno is 0"),
        ({"skip": -1}, "skip is -1"),
        ({"count": -1}, "count is -1"),
        ({"size": 0}, "size is 0"),
        ({"delay_seconds": -1.0}, "delay_seconds is -1"),
        ({"delay_seconds": float("nan")}, "delay_seconds is nan"),
    ],
    ids=str,
)
def test_option_that_cannot_be_raises_naming_it(inner: FileStore, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ErrorStore(inner, **options)


def test_wrapper_of_something_else_raises() -> None:
    with pytest.raises(TypeError, match="wants a store"):
        LogStore("x")


def test_controls_work_while_and_after_another_owns_the_store(inner: FileStore) -> None:
    """As a region does: it takes the native store, calls it from its own threads, and closes it."""
    store = ErrorStore(LogStore(inner), op="read", count=0)
    handle, record = store._release(), ffi.new("um_error *")
    memory = bytearray(8)
    assert lib.um_store_read(handle, 0, ffi.from_buffer(memory), 8, record) == 0
    store.set(op="read", errno=errno.EACCES)
    assert lib.um_store_read(handle, 0, ffi.from_buffer(memory), 8, record) == -errno.EACCES
    assert lib.um_store_close(handle, record) == 0
    store.set(op="write")
    assert store.calls == 2


def test_wrapper_dropped_while_another_owns_the_store_leaves_it_working(inner: FileStore) -> None:
    data = make_bytes(1, SIZE)
    inner.write(0, data)
    store = DelayStore(inner, 0.0)
    handle, record = store._release(), ffi.new("um_error *")
    del store
    gc.collect()
    memory = bytearray(SIZE)
    assert lib.um_store_read(handle, 0, ffi.from_buffer(memory), SIZE, record) == 0
    assert memory == data
    assert lib.um_store_close(handle, record) == 0


def test_wrapper_pickled_raises_naming_the_remedy(inner: FileStore) -> None:
    import pickle

    with DelayStore(inner, 0.0) as store, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(store)

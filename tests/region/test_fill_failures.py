"""A store that cannot be read: 0xFF in the page, an exception in the thread that touched it, and nothing hangs."""

import errno
import gc
import os
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy import Residency, errors
from umappy.stores import ErrorStore, FileStore, LogStore
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]

PAGE = 4096
SIZE = 8 * PAGE + 100
DELIVERY_SECONDS = 10.0
DATA = make_bytes(1, SIZE)


@pytest.fixture
def path(make_file: MakeFile) -> Path:
    return make_file(SIZE)


@pytest.fixture
def store(path: Path) -> ErrorStore:
    """Reads that touch the pages 2 and 3 fail for good; EACCES, which is not tried again."""
    return ErrorStore(FileStore(path, "r+"), errno=errno.EACCES, offset=2 * PAGE, size=2 * PAGE)


@pytest.fixture
def region(map_store: MapStore, store: ErrorStore) -> umappy.Region:
    """Its pages come one by one, so that the pages behind those that fail take a while."""
    return map_store(store, readahead=False)


def wait_for_exception() -> None:
    """Gives the interpreter its chance to raise what was sent to this thread."""
    deadline = time.monotonic() + DELIVERY_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.001)
    pytest.fail("no exception arrived")


def touch_and_wait(region: umappy.Region, place: int = 2 * PAGE) -> None:
    region[place]
    wait_for_exception()


def write_and_wait(region: umappy.Region, place: int, value: int) -> None:
    region[place] = value
    wait_for_exception()


def touch(region: umappy.Region, place: int = 2 * PAGE) -> None:
    """Touches a byte that cannot be read, and takes the exception."""
    with pytest.raises(errors.StoreError):
        touch_and_wait(region, place)


def test_touch_in_the_main_thread_raises_there(region: umappy.Region) -> None:
    with pytest.raises(errors.StorePermissionError) as caught:
        touch_and_wait(region)
    error = caught.value
    assert (error.errno, error.op, error.offset, error.length) == (errno.EACCES, "read", 2 * PAGE, PAGE)
    assert "cannot read the store at offset 8192 (4 KiB)" in str(error)


@pytest.mark.parametrize("name", ["one", "two"])
def test_touch_in_another_thread_raises_there_and_nowhere_else(region: umappy.Region, name: str) -> None:
    caught: list[BaseException] = []
    touched = threading.Event()

    def work() -> None:
        try:
            touched.set()
            touch_and_wait(region, 3 * PAGE)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work, name=name)
    thread.start()
    thread.join()
    assert [type(error).__name__ for error in caught] == ["StorePermissionError"]
    assert isinstance(caught[0], errors.StorePermissionError)
    assert isinstance(caught[0], PermissionError)
    region.check()


def test_touch_in_a_thread_python_does_not_know_raises_in_the_main_thread(
    run_python: Callable[..., object], path: Path
) -> None:
    """The thread is made by the C library and runs atoi on the region: 0xFF ends it at the first byte."""
    run_python(
        """
        import ctypes, errno
        libc = ctypes.CDLL(None)
        store = ErrorStore(FileStore(sys.argv[1]), errno=errno.EACCES)
        region = umappy.umap(store, page_size=4096)
        thread = ctypes.c_ulong()
        try:
            assert libc.pthread_create(ctypes.byref(thread), None, libc.atoi, ctypes.c_void_p(region.address)) == 0
            libc.pthread_join(thread, None)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                time.sleep(0.001)
        except umappy.StoreError as error:
            assert error.errno == errno.EACCES
        else:
            raise AssertionError("no exception arrived")
        region.check()
        region.close()
        """,
        path,
    )


def test_page_reads_as_0xff_and_the_rest_as_the_store_has_it(region: umappy.Region) -> None:
    touch(region)
    touch(region, 3 * PAGE)
    assert region[:] == DATA[: 2 * PAGE] + b"\xff" * 2 * PAGE + DATA[4 * PAGE :]
    assert np.isnan(np.frombuffer(region, np.float64, 512, 2 * PAGE)).all()


def test_page_is_told_as_failed(region: umappy.Region) -> None:
    touch(region)
    assert region.residency(2 * PAGE, 2 * PAGE).tolist() == [Residency.FAILED, Residency.ABSENT]


def test_pages_that_fail_before_the_exception_arrives_come_with_it(region: umappy.Region) -> None:
    """Both are touched without the GIL, or with it: no exception can arrive between them."""
    for read in (zlib.crc32, bytes):
        with pytest.raises(errors.StorePermissionError) as caught:
            read_and_wait(region, read)
        assert caught.value.offset == 2 * PAGE
        assert [f"offset {3 * PAGE} " in note for note in caught.value.__notes__] == [True]
        region.check()
        region.retry()


def read_and_wait(region: umappy.Region, read: Callable[[umappy.Region], object]) -> None:
    read(region)
    wait_for_exception()


def test_check_right_after_a_touch_raises_each_time(map_store: MapStore, make_file: MakeFile) -> None:
    """The delivery is after the same failure just then; whoever is first, it arrives before check has returned."""
    region = map_store(ErrorStore(FileStore(make_file(64 * PAGE)), errno=errno.EACCES))
    for turn in range(2000):
        with pytest.raises(errors.StorePermissionError):
            touch_and_check(region, turn % 64 * PAGE)
        region.retry()


def touch_and_check(region: umappy.Region, place: int) -> None:
    region[place]
    region.check()


def test_every_failure_is_told_to_its_thread_while_it_calls_methods(map_store: MapStore, make_file: MakeFile) -> None:
    """Methods keep locks for an instant: an exception that came just then would leave them locked."""
    region = map_store(ErrorStore(FileStore(make_file(64 * PAGE)), errno=errno.EACCES))
    told = [0] * 4

    def work(first: int) -> None:
        places = [page * PAGE for page in range(first, 64, 4)]
        while places:
            try:
                while places:
                    region[places[-1]]
                    place = places.pop()
                    region.stats()
                    region.evict(slice(place, place + 1))
            except errors.StoreError as error:
                told[first] += 1 + len(getattr(error, "__notes__", []))
        try:
            time.sleep(0.1)
            time.sleep(0)
        except errors.StoreError as error:
            told[first] += 1 + len(getattr(error, "__notes__", []))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    region.check()
    assert sum(told) == region.stats().fill_errors


def test_region_that_failed_and_is_garbage_is_closed(make_pager: MakePager, path: Path) -> None:
    """Who delivered its error keeps nothing of it."""
    pager = make_pager()
    store = ErrorStore(FileStore(path, "r+"), errno=errno.EACCES)
    region = umappy.umap(store, page_size=PAGE, pager=pager)
    touch(region)
    del region
    gc.collect()
    assert pager.stats().regions == 0
    FileStore(path, "r+").close()


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.check(),
        lambda r: r.flush(),
        lambda r: r.evict(slice(0, 1)),
        lambda r: r.prefetch(slice(0, 1)),
        lambda r: r.overwrite(0, b"x"),
    ],
    ids=["check", "flush", "evict", "prefetch", "overwrite"],
)
def test_next_method_raises_where_nobody_was_told(
    map_store: MapStore, store: ErrorStore, call: Callable[[umappy.Region], object]
) -> None:
    """The delivery is kept from running: what is tested is that the method itself asks."""
    region = map_store(store)
    umappy._delivery._regions.discard(region)
    assert region[2 * PAGE] == 0xFF
    with pytest.raises(errors.StorePermissionError):
        call(region)
    region.check()


def test_close_of_a_region_with_an_untold_failure_unmaps_and_raises_once(
    map_store: MapStore, store: ErrorStore
) -> None:
    region = map_store(store)
    umappy._delivery._regions.discard(region)
    assert region[2 * PAGE] == 0xFF
    with pytest.raises(errors.StorePermissionError):
        region.close()
    assert region.closed
    region.close()


def test_failure_told_once_is_kept_in_errors(region: umappy.Region) -> None:
    touch(region)
    touch(region, 3 * PAGE)
    assert [(error.errno, error.offset) for error in region.errors] == [
        (errno.EACCES, 2 * PAGE),
        (errno.EACCES, 3 * PAGE),
    ]  # type: ignore[attr-defined]
    region.check()


def test_errors_keeps_the_last_16(map_store: MapStore, make_file: MakeFile) -> None:
    region = map_store(ErrorStore(FileStore(make_file(20 * PAGE)), errno=errno.EACCES))
    umappy._delivery._regions.discard(region)
    for page in range(20):
        assert region[page * PAGE] == 0xFF
    assert [error.offset for error in region.errors] == [page * PAGE for page in range(4, 20)]  # type: ignore[attr-defined]
    for _ in range(16):
        with pytest.raises(errors.StoreError):
            region.check()
    region.check()


def test_failed_page_is_never_written_back(region: umappy.Region, path: Path) -> None:
    touch(region)
    region[0] = DATA[0] ^ 1
    region.flush()
    region.close()
    assert path.read_bytes() == bytes([DATA[0] ^ 1]) + DATA[1:]


def test_failed_page_is_read_again_after_retry(region: umappy.Region, store: ErrorStore) -> None:
    touch(region)
    store.clear()
    assert region[2 * PAGE] == 0xFF
    assert region.retry() == 1
    assert region[:] == DATA
    assert region.retry() == 0


def test_failed_page_that_fails_again_after_retry_raises_again(region: umappy.Region) -> None:
    touch(region)
    assert region.retry() == 1
    touch(region)
    assert region[2 * PAGE] == 0xFF


def test_failed_page_is_read_again_after_evict(region: umappy.Region, store: ErrorStore) -> None:
    touch(region)
    store.clear()
    region.evict()
    assert region[:] == DATA


def test_write_to_a_failed_page_reads_it_again_first(region: umappy.Region, store: ErrorStore, path: Path) -> None:
    touch(region)
    store.clear()
    region[2 * PAGE + 5] = 77
    wanted = bytearray(DATA)
    wanted[2 * PAGE + 5] = 77
    assert region[:] == wanted
    region.close()
    assert path.read_bytes() == wanted


def test_write_to_a_page_that_cannot_be_read_raises_and_is_never_written_back(
    region: umappy.Region, path: Path
) -> None:
    """The bytes around the written one are not known."""
    with pytest.raises(errors.StorePermissionError):
        write_and_wait(region, 2 * PAGE + 5, 77)
    region.flush()
    region.close()
    assert path.read_bytes() == DATA


def test_overwrite_of_a_page_that_cannot_be_read_writes_it(region: umappy.Region, path: Path) -> None:
    region.overwrite(2 * PAGE, bytes(2 * PAGE))
    region.flush()
    region.close()
    assert path.read_bytes() == DATA[: 2 * PAGE] + bytes(2 * PAGE) + DATA[4 * PAGE :]


def test_overwrite_of_a_failed_page_writes_it_without_reading(region: umappy.Region, path: Path) -> None:
    touch(region)
    region.overwrite(2 * PAGE, bytes(PAGE))
    assert region[2 * PAGE : 3 * PAGE] == bytes(PAGE)
    region.close()
    assert path.read_bytes() == DATA[: 2 * PAGE] + bytes(PAGE) + DATA[3 * PAGE :]


def test_overwrite_of_a_failed_page_after_retry_writes_it(region: umappy.Region, path: Path) -> None:
    touch(region)
    region.retry()
    region.overwrite(2 * PAGE, bytes(PAGE))
    assert region[2 * PAGE : 3 * PAGE] == bytes(PAGE)
    region.close()
    assert path.read_bytes() == DATA[: 2 * PAGE] + bytes(PAGE) + DATA[3 * PAGE :]


def test_prefetch_that_fails_raises_nothing_and_leaves_the_page_absent(region: umappy.Region) -> None:
    region.prefetch(wait=True)
    region.check()
    assert region.errors == ()
    assert region.residency().tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1]


def test_passing_failure_is_tried_again_and_nobody_notices(map_store: MapStore, path: Path) -> None:
    region = map_store(ErrorStore(FileStore(path), errno=errno.EIO, count=2), readahead=False)
    assert region[:PAGE] == DATA[:PAGE]
    region.check()
    assert region.stats().retries == 2


def test_passing_failure_that_stays_is_tried_three_times(map_store: MapStore, path: Path) -> None:
    store = ErrorStore(FileStore(path), errno=errno.EIO)
    region = map_store(store, readahead=False)
    with pytest.raises(errors.StoreError) as caught:
        touch_and_wait(region, 0)
    assert caught.value.errno == errno.EIO
    assert store.calls == 3


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errors.ETRUNCATED, errors.ECORRUPT])
def test_lasting_failure_is_tried_once(map_store: MapStore, path: Path, code: int) -> None:
    store = ErrorStore(FileStore(path), errno=code)
    region = map_store(store, readahead=False)
    with pytest.raises(errors.StoreError):
        touch_and_wait(region, 0)
    assert store.calls == 1


@dataclass(frozen=True)
class Budget:
    """Of 2 MiB, runs go through a filler's buffer; of 128 MiB, through chunks of 2 MiB first."""

    memory: int
    guesses: int


@pytest.mark.parametrize("budget", [Budget(2 << 20, guesses=1), Budget(128 << 20, guesses=2)], ids=["runs", "chunks"])
@pytest.mark.parametrize(("code", "tries"), [(errno.EACCES, 1), (errno.EIO, 3)])
def test_run_that_fails_is_tried_once_and_then_its_touched_page_alone(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile, budget: Budget, code: int, tries: int
) -> None:
    """What is read along or ahead is a guess, and is not waited for: only the page that somebody touched is."""
    size, bad = 16 << 20, 4 << 20
    log = LogStore(ErrorStore(FileStore(make_file(size)), errno=code, offset=bad + PAGE, size=size - bad))
    region = map_store(log, pager=make_pager(memory=budget.memory))
    for page in range(bad // PAGE):
        region[page * PAGE]
    log.take()
    region[bad]  # in the run that fails, and good
    region.check()
    with pytest.raises(errors.StoreError):
        touch_and_wait(region, bad + PAGE)
    assert [(error.offset, error.length) for error in region.errors] == [(bad + PAGE, PAGE)]
    calls = [call for call in log.take() if call.offset <= bad + PAGE < call.offset + call.size]
    alone = [call for call in calls if (call.offset, call.size) == (bad + PAGE, PAGE)]
    assert len(alone) >= tries
    # Ahead, for the page before, and for its own fault: what each reads along, and what it asks for ahead; on a busy
    # machine what was asked for before may come late. A guess may have come down to that page, too.
    assert len(calls) <= tries + 16 * budget.guesses
    assert region.stats().retries == tries - 1


def test_file_truncated_under_us_raises_with_path_and_place_and_the_rest_goes_on(
    map_store: MapStore, path: Path
) -> None:
    region = map_store(path)
    os.truncate(path, 4 * PAGE)
    with pytest.raises(errors.StoreTruncatedError, match=str(path)) as caught:
        touch_and_wait(region, 6 * PAGE)
    assert (caught.value.errno, caught.value.offset) == (errno.EIO, 6 * PAGE)
    assert region[: 4 * PAGE] == DATA[: 4 * PAGE]


def test_file_truncated_and_whole_again_reads_after_retry(map_store: MapStore, path: Path) -> None:
    region = map_store(path)
    os.truncate(path, 4 * PAGE)
    with pytest.raises(errors.StoreTruncatedError):
        touch_and_wait(region, 6 * PAGE)
    path.write_bytes(DATA)
    region.retry()
    assert region[:] == DATA


def test_every_second_read_failing_leaves_right_bytes_or_0xff(map_store: MapStore, make_file: MakeFile) -> None:
    """Far larger than its memory, many threads: each page is the store's or 0xFF, and is told."""
    data = make_bytes(1, 1 << 20)
    store = ErrorStore(FileStore(make_file(len(data))), errno=errno.EACCES, every=2)
    region = map_store(store)
    expected = np.frombuffer(data, np.uint8).reshape(-1, PAGE)
    bad = []

    def work(seed: int) -> None:
        pages = np.random.default_rng(seed).permutation(len(expected))
        got = np.frombuffer(region, np.uint8).reshape(-1, PAGE)
        for page in pages:
            while True:
                try:
                    copy = got[page].copy()
                    if not ((copy == expected[page]).all() or (copy == 0xFF).all()):
                        bad.append(page)
                    break
                except errors.StoreError:
                    pass

    threads = [threading.Thread(target=swallow, args=(work, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not bad
    assert region.stats().fill_errors > 100
    drain(region)


def swallow(work: Callable[[int], None], seed: int) -> None:
    """An exception on its way may arrive when the work is over."""
    try:
        work(seed)
        time.sleep(0.05)
    except errors.StoreError:
        pass


def drain(region: umappy.Region) -> None:
    """Takes every failure that is still to be told."""
    quiet = 0
    while quiet < 20:
        try:
            region.check()
            quiet += 1
            time.sleep(0.001)
        except errors.StoreError:
            quiet = 0

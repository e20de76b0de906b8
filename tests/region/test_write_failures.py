"""A store that does not take dirty pages: they are kept, told, and written once it takes them; nothing hangs."""

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import umappy
from umappy import Residency, errors
from umappy.stores import DelayStore, ErrorStore, FileStore
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]
Mount = Callable[..., Path]
RunPython = Callable[..., subprocess.CompletedProcess[str]]

PAGE = 4096
SIZE = 8 * PAGE + 100
MIB = 1 << 20
DATA = make_bytes(1, SIZE)
NEW = make_bytes(2, SIZE)


@pytest.fixture
def path(make_file: MakeFile) -> Path:
    return make_file(SIZE)


@pytest.fixture
def store(path: Path) -> ErrorStore:
    """Takes no writes, until `clear`."""
    return ErrorStore(FileStore(path, "r+"), op="write", errno=errno.ENOSPC)


@pytest.fixture
def region(map_store: MapStore, make_pager: MakePager, store: ErrorStore) -> umappy.Region:
    return map_store(store, pager=make_pager(memory=MIB), readahead=False)


def test_flush_that_fails_raises_with_the_place_and_keeps_the_pages(region: umappy.Region, store: ErrorStore) -> None:
    region[3 * PAGE : 5 * PAGE] = NEW[3 * PAGE : 5 * PAGE]
    with pytest.raises(errors.StoreFullError) as caught:
        region.flush()
    error = caught.value
    assert (error.errno, error.op, error.offset, error.length) == (errno.ENOSPC, "write", 3 * PAGE, 2 * PAGE)
    assert region.residency()[3:5].tolist() == [Residency.DIRTY] * 2
    assert region[3 * PAGE : 5 * PAGE] == NEW[3 * PAGE : 5 * PAGE]
    store.clear()


def test_flush_after_a_failure_writes_what_was_kept(region: umappy.Region, store: ErrorStore, path: Path) -> None:
    region[:] = NEW
    for _ in range(3):
        with pytest.raises(errors.StoreFullError):
            region.flush()
    store.clear()
    region.flush()
    assert path.read_bytes() == NEW


def test_flush_that_fails_in_part_writes_the_rest(region: umappy.Region, store: ErrorStore, path: Path) -> None:
    store.set(op="write", errno=errno.EIO, offset=3 * PAGE, size=1)
    region[0] = region[3 * PAGE] = region[6 * PAGE] = 0
    with pytest.raises(errors.StoreError) as caught:
        region.flush()
    assert caught.value.errno == errno.EIO
    assert caught.value.offset == 3 * PAGE
    wanted = bytearray(DATA)
    wanted[0] = wanted[6 * PAGE] = 0
    assert path.read_bytes() == wanted
    store.clear()


def test_flush_whose_fsync_fails_raises_and_the_next_one_asks_for_it_again(
    region: umappy.Region, store: ErrorStore
) -> None:
    store.set(op="flush", errno=errno.EIO, count=1)
    region[0] = 1
    with pytest.raises(errors.StoreError) as caught:
        region.flush()
    assert (caught.value.errno, caught.value.op) == (errno.EIO, "flush")
    before = region.stats().store_flushes
    region.flush()
    assert region.stats().store_flushes == before + 1


def test_evict_that_fails_raises_and_keeps_the_pages(region: umappy.Region, store: ErrorStore) -> None:
    region[:] = NEW
    with pytest.raises(errors.StoreFullError):
        region.evict()
    assert region[:] == NEW
    store.clear()
    region.evict()
    assert not region.residency().any()
    assert region[:] == NEW


def test_writes_go_on_while_the_store_fails(region: umappy.Region, store: ErrorStore, path: Path) -> None:
    region[:] = DATA[::-1]
    with pytest.raises(errors.StoreFullError):
        region.flush()
    region[:] = NEW
    store.clear()
    region.close()
    assert path.read_bytes() == NEW


def test_close_that_fails_raises_stays_open_and_can_be_repeated(
    region: umappy.Region, store: ErrorStore, path: Path
) -> None:
    region[:] = NEW
    for _ in range(2):
        with pytest.raises(errors.StoreFullError):
            region.close()
        assert not region.closed
        assert region[:] == NEW
    store.clear()
    region.close()
    assert path.read_bytes() == NEW


def test_close_with_discard_closes_and_leaves_the_file(region: umappy.Region, path: Path) -> None:
    region[:] = NEW
    with pytest.raises(errors.StoreFullError):
        region.close()
    region.close(discard=True)
    assert region.closed
    assert path.read_bytes() == DATA


def test_with_does_not_mask_the_body_s_exception(region: umappy.Region, store: ErrorStore) -> None:
    region[:] = NEW
    with pytest.raises(ZeroDivisionError) as caught, region:
        1 / 0  # noqa: B018
    assert "No space left on device" in caught.value.__notes__[0]
    assert not region.closed
    store.clear()


def test_passing_failures_are_written_again_without_a_word_to_the_caller(
    region: umappy.Region, store: ErrorStore, path: Path
) -> None:
    store.set(op="write", errno=errno.EAGAIN, every=2)
    region[:] = NEW
    for _ in range(20):
        try:
            region.flush()
            break
        except errors.StoreError:
            pass
    assert path.read_bytes() == NEW


def test_eviction_that_fails_now_and_then_loses_nothing(map_store: MapStore, make_file: MakeFile) -> None:
    """Far larger than its memory, so that evictors write all the time and every third write fails."""
    path = make_file(2 * MIB)
    store = ErrorStore(FileStore(path, "r+"), op="write", errno=errno.EIO, every=3)
    region = map_store(store)
    new = make_bytes(3, 2 * MIB)
    start = 0
    while start < len(new):
        try:
            region[start : start + 10_000] = new[start : start + 10_000]
            start += 10_000
        except errors.StoreError:
            pass
    store.clear()
    settle(region)
    assert region[:] == new
    settle(region)
    region.close()
    assert path.read_bytes() == new


def settle(region: umappy.Region) -> None:
    """Flushes until nothing is left to be told."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            region.flush()
            return
        except errors.StoreError:
            pass
    pytest.fail("still failing after 10 seconds")


def test_touch_with_all_memory_dirty_and_a_store_that_fails_raises_after_the_timeout(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    path = make_file(2 * MIB)
    store = ErrorStore(FileStore(path, "r+"), op="write", errno=errno.ENOSPC)
    pager = make_pager(timeout_seconds=0.3)
    region = map_store(store, pager=pager)
    begin = time.monotonic()
    with pytest.raises(errors.StoreError) as caught:
        write_pages(region)
    assert caught.value.errno in (errno.ENOSPC, errno.ENOMEM)
    assert 0.3 <= time.monotonic() - begin < 5
    dirty = region.stats().dirty
    assert dirty > 8 * PAGE
    store.clear()
    settle(region)
    region.retry()
    wanted = bytearray(make_bytes(1, 2 * MIB))
    assert sum(region[page] != wanted[page] for page in range(0, 2 * MIB, PAGE)) >= dirty // PAGE - 1
    region.close()


def write_pages(region: umappy.Region) -> None:
    """Flips a byte of each page, and waits a little for the exception."""
    for place in range(0, len(region), PAGE):
        region[place] ^= 0xFF
    time.sleep(1)


def test_overwrite_with_all_memory_dirty_and_a_store_that_fails_raises(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    store = ErrorStore(FileStore(make_file(2 * MIB), "r+"), op="write", errno=errno.ENOSPC)
    region = map_store(store, pager=make_pager(timeout_seconds=0.3))
    with pytest.raises((errors.StoreFullError, TimeoutError)):
        region.overwrite(0, bytes(2 * MIB))
    store.clear()
    settle(region)


def test_file_truncated_under_dirty_pages_raises_and_keeps_them(map_store: MapStore, path: Path) -> None:
    region = map_store(path, mode="r+")
    region[:] = NEW
    os.truncate(path, 4 * PAGE)
    with pytest.raises(errors.StoreTruncatedError, match=str(path)):
        region.flush()
    assert region[:] == NEW
    os.truncate(path, SIZE)
    region.flush()
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_full_disk_raises_with_the_path_keeps_pages_and_writes_them_when_there_is_space(
    mount: Mount, map_store: MapStore, make_pager: MakePager, kind: str
) -> None:
    folder = mount(kind, 8 * MIB)
    size = 4 * MIB
    region = map_store(folder / "x", size, mode="x", page_size=PAGE, pager=make_pager(memory=8 * MIB))
    with (folder / "ballast").open("wb") as file, pytest.raises(OSError, match="No space left"):
        fill_up(file)
    new = make_bytes(3, size)
    region[:] = new
    with pytest.raises(errors.StoreFullError, match=str(folder / "x")) as caught:
        region.flush()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.offset is not None
    assert region[:] == new
    (folder / "ballast").unlink()
    settle(region)
    assert (folder / "x").read_bytes() == new
    region.close()


def fill_up(file: object) -> None:
    while True:
        os.write(file.fileno(), bytes(4096))  # type: ignore[attr-defined]


def test_garbage_region_that_cannot_be_written_is_kept_and_written_at_exit(run_python: RunPython, path: Path) -> None:
    done = run_python(
        """
        import errno, gc
        store = ErrorStore(FileStore(sys.argv[1], "r+"), op="write", errno=errno.ENOSPC)
        pager = umappy.Pager("2MiB")
        region = umappy.umap(store, page_size=4096, pager=pager)
        region[:] = b"\\x07" * len(region)
        del region
        gc.collect()
        assert pager.stats().dirty > 0
        assert pager.stats().regions == 1
        store.clear()
        """,
        path,
    )
    assert path.read_bytes() == b"\x07" * SIZE
    assert "keeps dirty pages until exit" in done.stderr


def test_exit_with_a_store_that_fails_for_good_ends_and_says_what_is_lost(run_python: RunPython, path: Path) -> None:
    done = run_python(
        """
        import errno
        store = ErrorStore(FileStore(sys.argv[1], "r+"), op="write", errno=errno.ENOSPC)
        region = umappy.umap(store, page_size=4096, pager=umappy.Pager("2MiB"))
        region[:] = b"\\x07" * len(region)
        """,
        path,
    )
    assert path.read_bytes() == DATA
    assert "No space left on device" in done.stderr


def test_exit_with_a_store_that_hangs_ends_at_its_deadline(run_python: RunPython, path: Path) -> None:
    begin = time.monotonic()
    done = run_python(
        """
        umappy.config.exit_timeout_seconds = 1.0
        store = DelayStore(FileStore(sys.argv[1], "r+"), 600.0, op="write")
        region = umappy.umap(store, page_size=4096, pager=umappy.Pager("2MiB"))
        region[0] = 7
        cycle = [region]
        """,
        path,
    )
    assert time.monotonic() - begin < 20
    assert "umappy" in done.stderr


def test_flush_of_a_slow_store_can_be_interrupted_and_goes_on(run_python: RunPython, path: Path) -> None:
    """Ctrl-C is heard while the flush waits; the pages are written all the same."""
    run_python(
        """
        import signal
        store = DelayStore(FileStore(sys.argv[1], "r+"), 1.0, op="write")
        region = umappy.umap(store, page_size=4096, pager=umappy.Pager("2MiB"))
        region[0] = 7
        threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
        begin = time.monotonic()
        try:
            region.flush()
        except KeyboardInterrupt:
            assert time.monotonic() - begin < 0.9
        else:
            raise AssertionError("not interrupted")
        region.close()
        assert Path(sys.argv[1]).read_bytes()[0] == 7
        """,
        path,
    )


def test_region_under_a_slow_store_serves_other_calls_meanwhile(
    map_store: MapStore, make_pager: MakePager, path: Path
) -> None:
    store = DelayStore(FileStore(path, "r+"), 0.5, op="write")
    region = map_store(store, pager=make_pager(memory=MIB))
    region[:] = NEW
    begin = time.monotonic()
    region.prefetch()
    region.stats()
    region.residency()
    region[0] = 1
    assert time.monotonic() - begin < 0.4

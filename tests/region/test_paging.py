"""What a program can ask of a region's pages: flush, evict, prefetch, overwrite, residency, madvise, stats."""

import ctypes
import mmap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy import Residency
from umappy.stores import FileStore, LogStore
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]

PAGE = 4096
PAGES = 12
SIZE = PAGES * PAGE + 100
COUNT = PAGES + 1

ABSENT, CLEAN, DIRTY = Residency.ABSENT, Residency.CLEAN, Residency.DIRTY


@pytest.fixture
def path(make_file: MakeFile) -> Path:
    return make_file(SIZE)


@pytest.fixture
def region(map_store: MapStore, make_pager: MakePager, path: Path) -> umappy.Region:
    """All of it fits into its pager's memory, so that nothing is evicted unasked."""
    return map_store(path, mode="r+", pager=make_pager(memory=2 << 20))


@pytest.fixture
def lone(map_store: MapStore, make_pager: MakePager, path: Path) -> umappy.Region:
    """The same without reading ahead: what is touched is all that comes."""
    return map_store(path, mode="r+", pager=make_pager(memory=2 << 20), readahead=False)


def touch(region: umappy.Region, pages: list[int], *, write: bool = False) -> None:
    for page in pages:
        if write:
            region[page * PAGE] = 0xEE
        else:
            region[page * PAGE]


def test_residency_of_an_untouched_region_is_absent(region: umappy.Region) -> None:
    assert region.residency().tolist() == [ABSENT] * COUNT
    assert region.residency().dtype == np.uint8


def test_residency_tells_touched_and_written_pages(lone: umappy.Region) -> None:
    touch(lone, [1, 2, PAGES])
    touch(lone, [2, 5], write=True)
    wanted = [ABSENT] * COUNT
    wanted[1], wanted[2], wanted[5], wanted[PAGES] = CLEAN, DIRTY, DIRTY, CLEAN
    assert lone.residency().tolist() == wanted


def test_residency_tells_what_was_read_along_with_a_touched_page(region: umappy.Region) -> None:
    touch(region, [0, 1, 2, 3])
    assert region.residency()[:4].tolist() == [CLEAN] * 4
    assert region.stats().read_faults < 4


@pytest.mark.parametrize(
    ("offset", "size", "pages"),
    [(0, 1, [0]), (PAGE - 1, 2, [0, 1]), (PAGE, PAGE, [1]), (PAGES * PAGE, None, [PAGES]), (SIZE, 0, []), (5, 0, [])],
)
def test_residency_of_a_range_has_the_pages_that_lie_in_it(
    region: umappy.Region, offset: int, size: int | None, pages: list[int]
) -> None:
    touch(region, [1, PAGES])
    assert region.residency(offset, size).tolist() == region.residency()[pages].tolist()


def test_residency_does_not_touch_pages(region: umappy.Region) -> None:
    region.residency()
    assert region.stats().fills == 0


def test_residency_of_a_terabyte_takes_no_memory_of_the_pager_s(
    map_store: MapStore, make_pager: MakePager, tmp_path: Path
) -> None:
    pager = make_pager(1 << 20)
    region = map_store(tmp_path / "x", 1 << 40, mode="x", page_size=1 << 20, pager=pager)
    before = pager.stats().used
    assert not region.residency().any()
    assert pager.stats().used == before


def test_flush_makes_dirty_pages_clean_and_writes_them(region: umappy.Region, path: Path) -> None:
    region[: 3 * PAGE] = b"\x01" * 3 * PAGE
    region[SIZE - 1] = 2
    region.flush()
    assert DIRTY not in region.residency()
    assert path.read_bytes() == b"\x01" * 3 * PAGE + make_bytes(1, SIZE)[3 * PAGE : -1] + b"\x02"


def test_flush_of_a_range_leaves_the_rest_dirty(region: umappy.Region, path: Path) -> None:
    touch(region, [0, 3, 6], write=True)
    region.flush(3 * PAGE, 1)
    assert np.flatnonzero(region.residency() == DIRTY).tolist() == [0, 6]
    on_disk = path.read_bytes()
    assert [on_disk[page * PAGE] == 0xEE for page in (0, 3, 6)] == [
        make_bytes(1, SIZE)[0] == 0xEE,
        True,
        make_bytes(1, SIZE)[6 * PAGE] == 0xEE,
    ]


def test_flush_writes_pages_dirtied_again(region: umappy.Region, path: Path) -> None:
    for value in range(5):
        region[PAGE + 7] = value
        region.flush()
        assert path.read_bytes()[PAGE + 7] == value


def test_flush_writes_what_the_kernel_wrote(region: umappy.Region, path: Path, make_file: MakeFile) -> None:
    with memoryview(region) as view, make_file(SIZE, 9).open("rb", buffering=0) as file:
        file.readinto(view)
    region.flush()
    assert path.read_bytes() == make_bytes(9, SIZE)


def test_flush_joins_neighbours_into_one_write_and_makes_them_durable(
    map_store: MapStore, make_pager: MakePager, path: Path
) -> None:
    log = LogStore(FileStore(path, "r+"))
    region = map_store(log, pager=make_pager(memory=2 << 20))
    region.advise("random")  # so that no read ahead comes between the calls
    region[2 * PAGE : 7 * PAGE] = bytes(5 * PAGE)
    log.take()
    region.flush()
    calls = [(call.op, call.offset, call.size) for call in log.take()]
    assert calls == [("write", 2 * PAGE, 5 * PAGE), ("flush", 0, 0)]


def test_flush_with_nothing_new_leaves_the_store_alone(map_store: MapStore, make_pager: MakePager, path: Path) -> None:
    log = LogStore(FileStore(path, "r+"))
    region = map_store(log, pager=make_pager(memory=2 << 20))
    region[0] = 1
    region.flush()
    log.take()
    region.flush()
    assert [call for call in log.take() if call.op == "write"] == []


def test_flush_in_mode_r_does_nothing(map_store: MapStore, path: Path) -> None:
    region = map_store(path)
    region.flush()
    assert region.stats().store_flushes == 0


def test_flush_while_another_thread_writes_has_every_write_before_it(region: umappy.Region, path: Path) -> None:
    """A counter a page: what is on disk afterwards is at least what it was when the flush began."""
    counters = np.frombuffer(region, np.int64, SIZE // 8)[:: PAGE // 8]
    counters[:] = 0
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            for _ in range(100):
                np.add(counters, 1, out=counters)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(50):
            before = counters.copy()
            region.flush()
            after = counters.copy()
            on_disk = np.fromfile(path, np.int64, SIZE // 8)[:: PAGE // 8]
            assert (before <= on_disk).all()
            assert (on_disk <= after + 1).all()
    finally:
        stop.set()
        thread.join()
    region.flush()
    assert (np.fromfile(path, np.int64, SIZE // 8)[:: PAGE // 8] == counters).all()


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (1, -1), (SIZE + 1, None)])
def test_flush_of_a_range_outside_raises(region: umappy.Region, offset: int, size: int | None) -> None:
    with pytest.raises(ValueError, match=f"region of {SIZE} bytes"):
        region.flush(offset, size)


@pytest.mark.parametrize("method", ["flush", "residency", "madvise", "overwrite"])
def test_offset_of_another_type_raises(region: umappy.Region, method: str) -> None:
    with pytest.raises(TypeError, match="integer"):
        getattr(region, method)(1.5, b"")


def test_evict_takes_pages_out_and_tells_how_many_bytes(lone: umappy.Region) -> None:
    touch(lone, [0, 1, 2])
    assert lone.evict() == 3 * PAGE
    assert not lone.residency().any()
    assert lone.stats().resident == 0


def test_evict_takes_out_what_was_read_along(region: umappy.Region) -> None:
    touch(region, [0, 1, 2])
    here = np.count_nonzero(region.residency())
    assert here > 3
    assert region.evict() >= here * PAGE  # what was asked for may still have come


def test_evict_writes_dirty_pages_first(region: umappy.Region, path: Path) -> None:
    region[:] = make_bytes(2, SIZE)
    region.evict()
    assert path.read_bytes() == make_bytes(2, SIZE)
    assert region[:] == make_bytes(2, SIZE)


def test_evict_of_a_slice_takes_the_pages_that_lie_partly_inside(region: umappy.Region) -> None:
    touch(region, list(range(COUNT)))
    region.evict(slice(3 * PAGE - 1, 5 * PAGE + 1))
    assert np.flatnonzero(region.residency() == ABSENT).tolist() == [2, 3, 4, 5]


def test_evict_of_a_slice_from_the_end_takes_the_last_pages(region: umappy.Region) -> None:
    touch(region, list(range(COUNT)))
    assert region.evict(slice(-101, None)) > 0
    assert np.flatnonzero(region.residency() == ABSENT).tolist() == [PAGES - 1, PAGES]


def test_evict_of_an_empty_slice_does_nothing(region: umappy.Region) -> None:
    touch(region, [0, 1])
    assert region.evict(slice(5, 5)) == region.evict(slice(10, 3)) == 0
    assert region.residency()[:2].tolist() == [CLEAN, CLEAN]


@pytest.mark.parametrize("method", ["evict", "prefetch"])
def test_slice_with_a_step_raises(region: umappy.Region, method: str) -> None:
    with pytest.raises(ValueError, match="without a step"):
        getattr(region, method)(slice(0, 100, 2))


@pytest.mark.parametrize("method", ["evict", "prefetch"])
def test_range_that_is_no_slice_raises(region: umappy.Region, method: str) -> None:
    with pytest.raises(TypeError, match="wants a slice"):
        getattr(region, method)(4096)


def test_evicted_pages_show_what_the_file_holds_now(map_store: MapStore, make_pager: MakePager, path: Path) -> None:
    region = map_store(FileStore(path, direct=False), pager=make_pager(memory=2 << 20))
    assert region[0] == make_bytes(1, SIZE)[0]
    with path.open("r+b") as file:
        file.write(bytes([make_bytes(1, SIZE)[0] ^ 0xFF]))
    assert region[0] == make_bytes(1, SIZE)[0]
    region.evict()
    assert region[0] == make_bytes(1, SIZE)[0] ^ 0xFF


def test_prefetch_fills_pages_without_faults(region: umappy.Region) -> None:
    region.prefetch(slice(PAGE, 4 * PAGE), wait=True)
    assert np.flatnonzero(region.residency() == CLEAN).tolist() == [1, 2, 3]
    assert region[PAGE : 4 * PAGE] == make_bytes(1, SIZE)[PAGE : 4 * PAGE]
    stats = region.stats()
    assert (stats.prefetches, stats.read_faults) == (3, 0)


def test_prefetch_joins_neighbours_into_one_read(map_store: MapStore, make_pager: MakePager, path: Path) -> None:
    log = LogStore(FileStore(path))
    region = map_store(log, pager=make_pager(memory=2 << 20))
    region.prefetch(slice(2 * PAGE, 10 * PAGE), wait=True)
    assert [(call.offset, call.size) for call in log.take()] == [(2 * PAGE, 8 * PAGE)]


def test_prefetched_pages_are_tracked_for_writes(region: umappy.Region, path: Path) -> None:
    region.prefetch(wait=True)
    region[5 * PAGE] = make_bytes(1, SIZE)[5 * PAGE] ^ 1
    assert region.residency()[5] == DIRTY
    region.flush()
    assert path.read_bytes()[5 * PAGE] == make_bytes(1, SIZE)[5 * PAGE] ^ 1


def test_prefetch_keeps_what_is_dirty(region: umappy.Region) -> None:
    region[2 * PAGE : 3 * PAGE] = bytes(PAGE)
    region.prefetch(wait=True)
    assert region[2 * PAGE : 3 * PAGE] == bytes(PAGE)
    assert region.residency()[2] == DIRTY


def test_prefetch_without_wait_returns_and_fills_later(region: umappy.Region) -> None:
    region.prefetch()
    while region.residency().tolist() != [CLEAN] * COUNT:  # the watchdog ends it where that never comes
        pass
    assert region.stats().read_faults == 0


def test_prefetch_of_far_more_than_the_budget_stays_within_it(map_store: MapStore, make_file: MakeFile) -> None:
    region = map_store(make_file(4 << 20))
    region.prefetch(wait=True)
    stats = region.stats()
    assert stats.peak_used <= stats.memory
    assert region[:] == make_bytes(1, 4 << 20)


def test_prefetch_while_faults_come_keeps_the_bytes_right(map_store: MapStore, make_file: MakeFile) -> None:
    region = map_store(make_file(2 << 20), mode="r+")
    data = make_bytes(1, 2 << 20)
    for start in range(0, len(data), 50_000):
        region.prefetch(slice(start, start + 100_000))
        assert region[start : start + 20_000] == data[start : start + 20_000]


def test_overwrite_of_whole_pages_reads_nothing(region: umappy.Region, path: Path) -> None:
    region.overwrite(2 * PAGE, b"\x05" * 4 * PAGE)
    assert region.stats().bytes_read == 0
    assert region.residency()[2:6].tolist() == [DIRTY] * 4
    region.close()
    assert path.read_bytes() == make_bytes(1, SIZE)[: 2 * PAGE] + b"\x05" * 4 * PAGE + make_bytes(1, SIZE)[6 * PAGE :]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, SIZE), (1, SIZE - 1), (PAGE - 1, 2), (3, 0), (PAGES * PAGE, 100), (7, 3 * PAGE), (SIZE, 0)],
)
def test_overwrite_of_any_range_is_an_assignment(region: umappy.Region, path: Path, offset: int, length: int) -> None:
    wanted = bytearray(make_bytes(1, SIZE))
    wanted[offset : offset + length] = new = make_bytes(5, length)
    region.overwrite(offset, new)
    assert region[:] == wanted
    region.close()
    assert path.read_bytes() == wanted


def test_overwrite_of_far_more_than_the_budget_writes_everything(map_store: MapStore, make_file: MakeFile) -> None:
    path = make_file(4 << 20)
    region = map_store(path, mode="r+")
    region.overwrite(0, make_bytes(2, 4 << 20))
    region.close()
    assert path.read_bytes() == make_bytes(2, 4 << 20)


def test_overwrite_over_resident_and_dirty_pages_wins(region: umappy.Region) -> None:
    touch(region, [0, 1, 4])
    touch(region, [1, 2], write=True)
    region.overwrite(0, make_bytes(3, SIZE))
    assert region[:] == make_bytes(3, SIZE)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, "S5"])
def test_overwrite_takes_any_contiguous_buffer(region: umappy.Region, dtype: object) -> None:
    data = np.frombuffer(make_bytes(4, 4000), dtype)  # type: ignore[call-overload]
    region.overwrite(9, data)
    assert region[9:4009] == data.tobytes()


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_overwrite_with_nothing_changes_nothing(region: umappy.Region, shape: tuple[int, ...]) -> None:
    region.overwrite(SIZE, np.empty(shape))
    assert region[:] == make_bytes(1, SIZE)


def test_overwrite_with_what_is_not_contiguous_raises(region: umappy.Region) -> None:
    with pytest.raises(TypeError, match="contiguous"):
        region.overwrite(0, np.zeros((4, 4), np.uint8)[:, 1:3])


@pytest.mark.parametrize("shift", [-PAGE, -5, 0, 5, PAGE])
def test_overwrite_from_the_region_itself_copies_as_if_through_a_buffer(region: umappy.Region, shift: int) -> None:
    wanted = bytearray(make_bytes(1, SIZE))
    start = 2 * PAGE
    wanted[start + shift : start + shift + 5 * PAGE] = wanted[start : start + 5 * PAGE]
    with memoryview(region) as view, view[start : start + 5 * PAGE] as part:
        region.overwrite(start + shift, part)
    assert region[:] == wanted


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (SIZE, 1), (0, SIZE + 1), (SIZE - 1, 2)])
def test_overwrite_that_does_not_fit_raises(region: umappy.Region, offset: int, length: int) -> None:
    with pytest.raises(ValueError, match=f"offset {offset} do not fit a region of {SIZE} bytes"):
        region.overwrite(offset, bytes(length))


def test_overwrite_in_mode_r_raises(map_store: MapStore, path: Path) -> None:
    with pytest.raises(TypeError, match=r"read-only; map it with mode='r\+'"):
        map_store(path).overwrite(0, b"x")


def test_madvise_dontneed_evicts_and_loses_nothing(region: umappy.Region) -> None:
    region[:] = make_bytes(2, SIZE)
    region.madvise(mmap.MADV_DONTNEED, 0, 2 * PAGE)
    assert region.residency()[:3].tolist() == [ABSENT, ABSENT, DIRTY]
    assert region[:] == make_bytes(2, SIZE)


def test_madvise_willneed_prefetches(region: umappy.Region) -> None:
    region.madvise(mmap.MADV_WILLNEED, PAGE, PAGE)
    while region.residency()[1] != CLEAN:  # the watchdog ends it where that never comes
        pass


@pytest.mark.parametrize("option", [mmap.MADV_NORMAL, mmap.MADV_RANDOM, mmap.MADV_SEQUENTIAL])
def test_madvise_of_an_access_pattern_changes_nothing(region: umappy.Region, option: int) -> None:
    region.madvise(option)
    assert region[:] == make_bytes(1, SIZE)


@pytest.mark.parametrize("option", [mmap.MADV_FREE, mmap.MADV_REMOVE, mmap.MADV_DONTFORK, mmap.MADV_HUGEPAGE, 9999])
def test_madvise_that_would_harm_raises(region: umappy.Region, option: int) -> None:
    with pytest.raises(ValueError, match="a region takes MADV_NORMAL"):
        region.madvise(option)


def test_resize_raises_and_says_what_to_do(region: umappy.Region) -> None:
    with pytest.raises(TypeError, match="umap the store with the new size"):
        region.resize(2 * SIZE)


def test_stats_count_faults_fills_and_bytes(lone: umappy.Region) -> None:
    touch(lone, [0, 1, 2])
    touch(lone, [2], write=True)
    touch(lone, [3], write=True)
    stats = lone.stats()
    assert (stats.read_faults, stats.write_faults, stats.protect_faults) == (3, 1, 1)
    assert (stats.fills, stats.bytes_read) == (4, 4 * PAGE)
    assert stats.store_reads <= 4  # what the store has in memory takes none
    assert (stats.resident, stats.dirty) == (4 * PAGE, 2 * PAGE)
    lone.flush()
    stats = lone.stats()
    assert (stats.writes, stats.bytes_written, stats.store_flushes, stats.dirty) == (2, 2 * PAGE, 1, 0)
    assert 0 < stats.fault_seconds(0.5) <= stats.fault_seconds(1.0) < 10


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_stats_count_of_the_last_page_only_the_memory_there_is(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile, page_size: int
) -> None:
    region = map_store(make_file(page_size + 5000), page_size=page_size, pager=make_pager(memory=4 << 20), mode="r+")
    region[:] = bytes(page_size + 5000)
    stats = region.stats()
    assert stats.resident == stats.dirty == stats.used - stats.overhead == page_size + 8192
    region.evict()
    stats = region.stats()
    assert stats.resident == stats.dirty == stats.used - stats.overhead == 0


def test_stats_of_two_regions_are_their_own_and_the_pager_has_the_sum(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    pager = make_pager(memory=2 << 20)
    one, two = (map_store(make_file(SIZE, seed), pager=pager, readahead=False) for seed in (1, 2))
    touch(one, [0, 1])
    touch(two, [5])
    assert (one.stats().fills, two.stats().fills, pager.stats().fills) == (2, 1, 3)
    one.close()
    assert pager.stats().fills == 3


def test_errors_and_check_of_a_sound_region_tell_nothing(region: umappy.Region) -> None:
    region[:] = bytes(SIZE)
    region.flush()
    region.check()
    assert region.errors == ()
    assert region.retry() == 0


def test_user_s_own_madvise_on_clean_pages_reads_them_again(region: umappy.Region) -> None:
    """Not through the region: a library that was handed the pointer."""
    touch(region, [0, 1])
    assert ctypes.CDLL(None).madvise(ctypes.c_void_p(region.address), ctypes.c_size_t(2 * PAGE), 4) == 0
    assert region[: 2 * PAGE] == make_bytes(1, SIZE)[: 2 * PAGE]
    region.check()

"""The pager: its budget and threads, several of them, several regions in one, memory reserved, and its end."""

import gc
import os
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy._engine import lib
from umappy.stores import DelayStore, FileStore
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]

MIB = 1 << 20


@pytest.mark.parametrize(("fillers", "evictors"), [(1, 1), (8, 2), (80, 4)])
def test_pager_with_the_smallest_budget_works_and_one_byte_less_raises(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile, fillers: int, evictors: int
) -> None:
    least = lib.um_pager_memory_min(4096, fillers, evictors)
    with pytest.raises(umappy.BudgetError, match=f"at least {least} bytes"):
        umappy.Pager(least - 1, fillers=fillers, evictors=evictors)
    pager = make_pager(fillers=fillers, evictors=evictors)
    assert pager.memory == least
    assert map_store(make_file(2 * MIB), pager=pager)[:] == make_bytes(1, 2 * MIB)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"memory": 0}, "memory"),
        ({"memory": -1}, "memory"),
        ({"memory": "4G"}, "memory"),
        ({"fillers": 0}, "fillers"),
        ({"fillers": 1025}, "fillers"),
        ({"evictors": 0}, "evictors"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds"),
        ({"uffd": "yes"}, "uffd"),
        ({"low_water": -1}, "low_water"),
        ({"low_water": "2MiB", "high_water": "1MiB"}, "low_water"),
        ({"high_water": "6MiB"}, "high_water"),
    ],
)
def test_option_that_is_none_raises_and_names_it(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        umappy.Pager(**({"memory": "8MiB"} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"low_water": "3MiB"}, {"high_water": "8KiB"}, {"low_water": 0, "high_water": 0}])
def test_water_mark_alone_moves_the_other_one(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile, options: dict[str, object]
) -> None:
    region = map_store(make_file(16 * MIB), pager=make_pager(memory=8 * MIB, **options), mode="r+")
    region[:] = make_bytes(2, 16 * MIB)
    assert region[:] == make_bytes(2, 16 * MIB)


@pytest.mark.parametrize("options", [{"memory": 1.5}, {"fillers": 1.0}, {"low_water": 0.5}, {"timeout_seconds": []}])
def test_option_of_another_type_raises_and_names_it(options: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(options))} is "):
        umappy.Pager(**({"memory": "8MiB"} | options))  # type: ignore[arg-type]


def test_pager_tells_its_memory_threads_and_way_to_userfaultfd(make_pager: MakePager) -> None:
    pager = make_pager(memory=8 * MIB, fillers=3, evictors=2)
    stats = pager.stats()
    assert (pager.memory, stats.memory, stats.fillers, stats.evictors) == (8 * MIB, 8 * MIB, 3, 2)
    assert (stats.regions, stats.resident, stats.uffd in (1, 2, 3)) == (0, 0, True)
    assert repr(pager) == "<umappy.Pager memory=8 MiB>"


def test_closed_pager_says_so_and_refuses(make_pager: MakePager) -> None:
    pager = make_pager()
    pager.close()
    assert pager.is_closed
    assert repr(pager) == "<umappy.Pager closed>"
    with pytest.raises(umappy.ClosedError, match="the pager is closed"):
        pager.stats()
    with pytest.raises(umappy.ClosedError, match="the pager is closed"), pager.reserved(1):
        pass


def test_close_while_regions_live_raises_and_everything_goes_on(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    pager = make_pager()
    region = map_store(make_file(MIB), pager=pager)
    with pytest.raises(RuntimeError, match="still has regions"):
        pager.close()
    assert not pager.is_closed
    assert region[:] == make_bytes(1, MIB)
    region.close()
    pager.close()
    pager.close()


def test_with_closes_and_never_masks_the_body_s_exception(make_file: MakeFile) -> None:
    with umappy.Pager("8MiB") as pager:
        pass
    assert pager.is_closed
    pager = umappy.Pager("8MiB")
    region = umappy.umap(make_file(5000), pager=pager)
    with pytest.raises(ZeroDivisionError) as caught, pager:
        1 / 0  # noqa: B018
    assert "still has regions" in caught.value.__notes__[0]
    region.close()
    pager.close()


def test_with_raises_where_only_closing_fails(make_file: MakeFile) -> None:
    pager = umappy.Pager("8MiB")
    region = umappy.umap(make_file(5000), pager=pager)
    with pytest.raises(RuntimeError, match="still has regions"), pager:
        pass
    region.close()
    pager.close()


def test_closed_and_forgotten_pagers_leave_no_threads_and_no_files() -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    umappy.Pager("8MiB").close()  # the thread that delivers errors stays
    before = count()  # threads of earlier tests may still be ending
    for _ in range(20):
        umappy.Pager("8MiB").close()
    for _ in range(20):
        umappy.Pager("8MiB")
    gc.collect()
    threads, files = count()
    assert threads <= before[0]
    assert files == before[1]


def test_many_regions_of_one_pager_share_its_budget(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    """Of different pages and modes, used in turns; the budget is the smallest for the largest pages."""
    pager = make_pager(65536)
    size = MIB + 5
    regions = [
        map_store(make_file(size, seed), pager=pager, page_size=4096 << seed % 5, mode=("r", "r+")[seed % 2])
        for seed in range(12)
    ]
    for start in range(0, size, 100_000):
        for seed, region in enumerate(regions):
            part = region[start : start + 100_000]
            assert part == make_bytes(seed, size)[start : start + 100_000]
            if seed % 2:
                region[start : start + 100_000] = part[::-1]
    stats = pager.stats()
    assert stats.regions == 12
    assert sum(region.stats().resident for region in regions) == stats.resident <= pager.memory
    for region in regions[1::2]:
        region.close()
    for seed, region in list(enumerate(regions))[1::2]:
        data = make_bytes(seed, size)
        wanted = b"".join(data[start : start + 100_000][::-1] for start in range(0, size, 100_000))
        assert Path(region.store.path).read_bytes() == wanted


def test_regions_in_great_number_leave_the_budget_to_the_pages(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    """What the first remember of their readers takes a part of it; the others do without, and nobody waits for it."""
    pager = make_pager(memory=16 * MIB)
    path = make_file(65536, 1)
    started = time.monotonic()
    regions = [map_store(path, pager=pager) for _ in range(300)]
    took = time.monotonic() - started
    assert pager.stats().overhead < pager.memory * 3 / 4
    assert took < 10
    assert {regions[0][:], regions[-1][:]} == {make_bytes(1, 65536)}


def test_regions_of_two_pagers_in_one_statement_do_not_wait_for_each_other(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    one, two = (map_store(make_file(MIB, seed), pager=make_pager(), mode="r+") for seed in (1, 2))
    first, second = (np.frombuffer(region, np.uint8) for region in (one, two))
    np.bitwise_xor(first, second, out=first)
    np.bitwise_xor(second, first, out=second)
    assert one.pager is not two.pager
    assert two[:] == make_bytes(1, MIB)
    del first, second


def test_a_pager_s_slow_store_does_not_hold_up_another_pager(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    """Nor other fillers of its own: the slow reads are still under way when the other regions have been read."""
    delayed = DelayStore(FileStore(make_file(5 * 4096)), 0.4)
    pager = make_pager(fillers=3)
    slow = map_store(delayed, pager=pager)
    quick = [map_store(make_file(MIB, 2), pager=owner) for owner in (pager, make_pager())]
    got = threading.Event()

    def read() -> None:
        zlib.crc32(slow)  # lets go of the GIL
        got.set()

    thread = threading.Thread(target=read)
    thread.start()
    while delayed.calls == 0:  # the watchdog ends it where that never comes
        pass
    assert [region[:] == make_bytes(2, MIB) for region in quick] == [True, True]
    assert not got.is_set()
    thread.join()
    assert got.is_set()


def test_many_threads_on_one_filler_all_get_their_bytes(map_store: MapStore, make_file: MakeFile) -> None:
    """More threads wait for pages at once than the budget has pages."""
    data = make_bytes(1, 2 * MIB)

    region = map_store(make_file(len(data)))

    def check(seed: int) -> bool:
        places = np.random.default_rng(seed).integers(0, len(data), 200)
        got = np.frombuffer(region, np.uint8).take(places)
        return bool((got == np.frombuffer(data, np.uint8)[places]).all())

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(check, range(128)))


def test_reserved_takes_its_bytes_of_the_budget_and_gives_them_back(make_pager: MakePager) -> None:
    pager = make_pager(memory=8 * MIB)
    before = pager.stats().used
    with pager.reserved("2MiB"):
        assert pager.stats().used == before + 2 * MIB
        with pager.reserved(MIB):
            assert pager.stats().used == before + 3 * MIB
    assert pager.stats().used == before


def test_reserved_gives_back_when_the_block_raises(make_pager: MakePager) -> None:
    pager = make_pager(memory=8 * MIB)
    before = pager.stats().used
    with pytest.raises(ZeroDivisionError), pager.reserved(MIB):
        1 / 0  # noqa: B018
    assert pager.stats().used == before


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_reserved_evicts_pages_to_make_room(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile, mode: str
) -> None:
    pager = make_pager(memory=4 * MIB)
    region = map_store(make_file(8 * MIB), pager=pager, mode=mode)
    if mode == "r+":
        region[:] = bytes(len(region))
    else:
        assert region[:] == make_bytes(1, 8 * MIB)
    stats = pager.stats()
    assert stats.resident + stats.standby > 2 * MIB
    with pager.reserved(3 * MIB):
        assert pager.stats().used <= pager.memory
        assert pager.stats().resident <= MIB
        region.find(b"not there" * 3)
        assert pager.stats().resident <= MIB


def test_reserved_of_more_than_regions_can_spare_raises(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    pager = make_pager(memory=4 * MIB)
    map_store(make_file(5000), pager=pager)
    with pytest.raises(umappy.BudgetError, match="cannot reserve 4 MiB"), pager.reserved(4 * MIB):
        pytest.fail("reserved all of the budget")
    assert pager.stats().used < MIB


def test_region_that_does_not_fit_beside_what_is_reserved_raises_and_says_so(
    make_pager: MakePager, make_file: MakeFile
) -> None:
    pager = make_pager(memory=4 * MIB)
    with pager.reserved(3 * MIB), pytest.raises(umappy.BudgetError, match="reserved"):
        umappy.umap(make_file(5000), page_size=65536, pager=pager)


def test_reserved_that_no_page_makes_room_for_raises_timeout(
    make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> None:
    """The store takes long for each write, and nothing else can leave."""
    pager = make_pager(memory=4 * MIB)
    store = DelayStore(FileStore(make_file(3 * MIB), "r+"), 1.5, op="write")
    region = map_store(store, pager=pager)
    region.overwrite(0, bytes(3 * MIB))
    with pytest.raises(TimeoutError, match="did not come free"), pager.reserved(3 * MIB, timeout_seconds=0.3):
        pytest.fail("reserved what is dirty")
    store.clear()
    with pager.reserved(3 * MIB, timeout_seconds=10.0):
        assert pager.stats().used <= pager.memory

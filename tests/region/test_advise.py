"""What a program can tell of what it will touch: prefetch of slices and byte offsets, and advice."""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
PAGES = 24
SIZE = PAGES * PAGE - 100


@pytest.fixture
def region(map_store: MapStore, make_pager: MakePager, make_file: MakeFile) -> umappy.Region:
    """All of it fits into its pager's memory, so that nothing is evicted unasked."""
    return map_store(make_file(SIZE), mode="r+", pager=make_pager(memory=4 << 20, fillers=3))


def resident(region: umappy.Region) -> list[int]:
    return np.flatnonzero(region.residency() != Residency.ABSENT).tolist()


@pytest.mark.parametrize(
    ("what", "pages"),
    [
        ([slice(5 * PAGE, 6 * PAGE), slice(0, 1)], [0, 5]),
        ((slice(PAGE - 1, PAGE + 1), slice(PAGE, 3 * PAGE)), [0, 1, 2]),
        ([slice(-1, None)], [PAGES - 1]),
        ([slice(7, 7)], []),
        ([], []),
        (np.array([], np.int64), []),
        ([9 * PAGE, 2 * PAGE + 5, 9 * PAGE + 1], [2, 9]),
        (np.array([[0, SIZE - 1], [3 * PAGE, -SIZE]], np.int32), [0, 3, PAGES - 1]),
        (np.array([PAGE], np.uint64), [1]),
        (range(0, 4 * PAGE, PAGE), [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_prefetch_fills_the_pages_named_and_no_others(region: umappy.Region, what: Any, pages: list[int]) -> None:
    region.prefetch(what, wait=True)
    assert resident(region) == pages
    assert region.stats().prefetches == len(pages)
    assert region[:] == make_bytes(1, SIZE)


def test_prefetch_of_neighbours_in_any_order_is_one_read(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    log = LogStore(FileStore(make_file(SIZE)))
    region = map_store(log, pager=make_pager(memory=4 << 20))
    region.prefetch(np.array([5, 3, 4, 10, 3]) * PAGE, wait=True)
    assert [(call.offset, call.size) for call in log.take()] == [(3 * PAGE, 3 * PAGE), (10 * PAGE, PAGE)]


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ([SIZE], IndexError, f"byte offset {SIZE} is outside a region of {SIZE} bytes"),
        (np.array([0, -SIZE - 1]), IndexError, f"byte offset {-SIZE - 1} is outside"),
        ([0.5], TypeError, "an array of byte offsets"),
        (np.array([True]), TypeError, "an array of byte offsets"),
        ("0", TypeError, "an array of byte offsets"),
        (5, TypeError, "an array of byte offsets"),
        ([slice(0, 1), 7], TypeError, "a list of slices"),
        ([[1, 2], [3]], TypeError, "a list of slices"),
        ([slice(0, 10, 2)], ValueError, "without a step"),
    ],
    ids=str,
)
def test_prefetch_of_what_it_does_not_take_says_what_it_does(
    region: umappy.Region, what: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        region.prefetch(what)
    assert resident(region) == []


def test_prefetch_of_more_pages_than_the_budget_holds_fetches_those_named_first(
    map_store: MapStore, make_file: MakeFile
) -> None:
    region = map_store(make_file(1 << 20), page_size=PAGE)
    offsets = np.arange(255, -1, -1) * PAGE
    region.prefetch(offsets, wait=True)
    stats = region.stats()
    assert 0 < stats.prefetches < 256 // 2
    assert resident(region) == list(range(256 - stats.prefetches, 256))
    assert stats.peak_used <= stats.memory
    region.evict()
    region.prefetch([slice(200 * PAGE, None), slice(0, 1)], wait=True)
    assert min(resident(region)) == 200


@pytest.mark.parametrize("hint", ["normal", "sequential", "random", "willwrite"])
@pytest.mark.parametrize("what", [None, slice(0, 5000), [slice(0, 1), slice(9000, None)], []], ids=str)
def test_advice_of_use_changes_no_byte_and_fetches_nothing(region: umappy.Region, hint: str, what: Any) -> None:
    region.advise(hint, what)
    assert resident(region) == []
    assert region[:] == make_bytes(1, SIZE)
    region[100:200] = bytes(100)
    region.evict()
    assert region[:] == make_bytes(1, SIZE)[:100] + bytes(100) + make_bytes(1, SIZE)[200:]


@pytest.mark.parametrize("hint", ["normal", "sequential", "random", "willneed", "dontneed", "willwrite"])
def test_advice_for_an_array_over_the_region_is_for_its_memory(region: umappy.Region, hint: str) -> None:
    region.prefetch(slice(6 * PAGE, 12 * PAGE), wait=True)
    part = np.frombuffer(region, np.uint8)[4 * PAGE : 8 * PAGE].reshape(4, -1)[::-1, ::2]
    region.advise(hint, part)
    if hint == "dontneed":
        assert resident(region) == [8, 9, 10, 11]
    elif hint == "willneed":
        while resident(region) != list(range(4, 12)):  # the watchdog ends it where that never comes
            pass
    else:
        assert resident(region) == list(range(6, 12))


def test_advice_dontneed_of_slices_writes_dirty_pages_first(region: umappy.Region) -> None:
    region[0], region[5 * PAGE] = 1, 2
    region.advise("dontneed", [slice(0, 1), slice(5 * PAGE, 5 * PAGE + 1)])
    assert not {0, 5} & set(resident(region))
    assert (region[0], region[5 * PAGE]) == (1, 2)


@pytest.mark.parametrize("what", [np.zeros(3), 5, "x", [1, 2]], ids=repr)
def test_advice_for_what_is_not_of_the_region_raises(region: umappy.Region, what: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"over it|not a copy"):
        region.advise("random", what)


def test_advice_of_an_unknown_kind_names_those_there_are(region: umappy.Region) -> None:
    with pytest.raises(ValueError, match=r"hint is 'fast': wants one of 'normal', .*'dontneed'"):
        region.advise("fast")


def test_advice_willwrite_in_mode_r_raises(map_store: MapStore, make_file: MakeFile) -> None:
    with pytest.raises(TypeError, match=r"'willwrite', but the region is read-only; map it with mode='r\+'"):
        map_store(make_file(SIZE)).advise("willwrite")


def test_advice_for_more_ranges_than_are_remembered_says_what_to_do(
    map_store: MapStore, make_pager: MakePager, tmp_path: Path
) -> None:
    region = map_store(tmp_path / "x", 10_000 * PAGE, mode="x", pager=make_pager(memory=4 << 20))
    pages = [slice(page * PAGE, page * PAGE + 1) for page in range(0, 10_000, 2)]
    with pytest.raises(ValueError, match="fewer and larger ones"):
        region.advise("random", pages)
    region.advise("normal")
    region.advise("random", pages[:4000])


def test_advice_with_the_smallest_budget_is_taken(map_store: MapStore, make_file: MakeFile) -> None:
    region = map_store(make_file(1 << 20))
    region[:]
    region.advise("sequential", [slice(page * PAGE, page * PAGE + 1) for page in range(0, 256, 2)])
    stats = region.stats()
    assert stats.peak_used <= stats.memory


@pytest.mark.parametrize(
    ("option", "hint"),
    [(mmap.MADV_NORMAL, "normal"), (mmap.MADV_SEQUENTIAL, "sequential"), (mmap.MADV_RANDOM, "random")],
)
def test_madvise_of_an_access_pattern_is_advice(
    region: umappy.Region, monkeypatch: pytest.MonkeyPatch, option: int, hint: str
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(type(region), "advise", lambda self, *arguments: given.append(arguments))
    region.madvise(option, PAGE, PAGE)
    assert given == [(hint, slice(PAGE, 2 * PAGE))]


def test_advice_after_close_raises(region: umappy.Region) -> None:
    region.close()
    with pytest.raises(ValueError, match="closed"):
        region.advise("random")

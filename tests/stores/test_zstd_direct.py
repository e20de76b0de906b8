"""Compressed files past the page cache: long runs of cold records; what is written meanwhile is seen."""

from pathlib import Path

import pytest
from page_cache import drop_cached, list_cached

from umappy.stores import ZstdStore
from umappy.stores._zstd_pack import ZstdPack
from umappy.stores.testing import make_bytes, read, write

PAGE = 64 << 10
SIZE = 4 << 20
DATA = make_bytes(7, SIZE)
CACHED_MAX = SIZE // 4
"""Superblocks and index are read by themselves, and the last run because it shares a block with them."""


@pytest.fixture
def path(direct_folder: Path) -> Path:
    """A packed file of bytes that do not compress, none of it in the page cache."""
    path = direct_folder / "x.zst"
    with ZstdPack(str(path), page_size=PAGE, level=1, dictionary=b"") as pack:
        pack.write(DATA)
    drop_cached(path)
    return path


def count_cached(path: Path) -> int:
    return 4096 * len(list_cached(path))


def test_long_cold_read_leaves_no_records_in_the_page_cache(path: Path) -> None:
    with ZstdStore(path) as store:
        assert read(store) == DATA
        assert count_cached(path) <= CACHED_MAX


def test_short_cold_read_goes_through_the_page_cache(path: Path) -> None:
    with ZstdStore(path) as store:
        before = count_cached(path)
        assert read(store, 10 * PAGE, PAGE) == DATA[10 * PAGE : 11 * PAGE]
        assert count_cached(path) - before >= PAGE


def test_long_read_of_what_is_cached_uses_it(path: Path) -> None:
    path.read_bytes()
    with ZstdStore(path) as store:
        cached = count_cached(path)
        assert read(store) == DATA
        assert count_cached(path) == cached


def test_long_read_sees_what_was_written_and_not_flushed(path: Path) -> None:
    new = make_bytes(8, 16 * PAGE)
    with ZstdStore(path, "r+") as store:
        write(store, 8 * PAGE, new)
        assert read(store) == DATA[: 8 * PAGE] + new + DATA[24 * PAGE :]
        store.flush()
        drop_cached(path)
        assert read(store) == DATA[: 8 * PAGE] + new + DATA[24 * PAGE :]


@pytest.mark.parametrize("size", [1, 4095, PAGE - 1, 3 * PAGE + 4097])
def test_long_read_to_the_very_end_of_the_file(direct_folder: Path, size: int) -> None:
    path = direct_folder / "odd.zst"
    with ZstdStore(path, "x", size=8 * PAGE + size, page_size=PAGE) as store:
        write(store, 0, DATA[: 8 * PAGE + size])
        store.flush()
        drop_cached(path)
        assert read(store) == DATA[: 8 * PAGE + size]


def test_long_cold_read_leaves_no_short_rest_to_the_page_cache(path: Path) -> None:
    with ZstdStore(path) as store:
        before = count_cached(path)
        assert read(store, 0, 32 * PAGE) == DATA[: 32 * PAGE]
        assert count_cached(path) - before < 2 * PAGE

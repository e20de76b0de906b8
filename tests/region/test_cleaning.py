"""What is written to a compressed file is compressed in the background, before a flush, where pages are moved."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import umappy
from umappy.stores import FileStore, LogStore, Store, ZstdStore
from umappy.stores.testing import make_bytes

PAGE = 64 << 10
SIZE = 8 << 20
DATA = make_bytes(3, SIZE)


@pytest.fixture
def pager() -> umappy.Pager:
    return umappy.Pager(64 << 20)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_cleaned(region: umappy.Region, floor: int) -> None:
    wait_until(lambda: region.stats().dirty < floor)
    stats = region.stats()
    assert stats.cleaned >= (SIZE - floor) // PAGE
    assert stats.store_flushes == 0
    assert stats.bytes_written >= stats.cleaned * PAGE
    assert region[:] == DATA
    assert region.stats().store_reads == stats.store_reads
    assert region.stats().cleaned_wasted <= stats.cleaned


def check_not_cleaned(region: umappy.Region) -> None:
    time.sleep(0.05)
    assert region.stats().dirty == SIZE
    assert region.stats().cleaned == 0


@pytest.mark.parametrize("wrap", [lambda store: store, LogStore], ids=["plain", "wrapped"])
def test_compressed_pages_are_written_before_a_flush(
    tmp_path: Path, pager: umappy.Pager, wrap: Callable[[Store], Store]
) -> None:
    store = wrap(ZstdStore(tmp_path / "x.zst", "x", size=SIZE, page_size=PAGE, level=3))
    with pager, umappy.umap(store, pager=pager) as region:
        region[:] = DATA
        if pager.stats().mechanism == "move":
            check_cleaned(region, pager.memory // 128)
        else:
            check_not_cleaned(region)
    with ZstdStore(tmp_path / "x.zst") as packed:
        read = bytearray(SIZE)
        packed.read_into(0, read)
        assert read == DATA


def test_pages_of_a_plain_file_stay_dirty_until_a_flush(tmp_path: Path, pager: umappy.Pager) -> None:
    with pager, umappy.umap(FileStore(tmp_path / "x", "x", size=SIZE), page_size=PAGE, pager=pager) as region:
        region[:] = DATA
        check_not_cleaned(region)

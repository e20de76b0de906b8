"""FileStore past the page cache: that it is, what goes through the cache all the same, and that both agree."""

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from page_cache import drop_cached, list_cached

from umappy import errors
from umappy.stores import FileStore
from umappy.stores.testing import make_bytes, read

BLOCK = 4096
BLOCKS = 64


@pytest.fixture
def path(direct_folder: Path) -> Path:
    return direct_folder / "x"


def make_file(path: Path, size: int = BLOCKS * BLOCK) -> bytes:
    """A file of random bytes with nothing of it in the page cache."""
    data = make_bytes(3, size)
    path.write_bytes(data)
    drop_cached(path)
    return data


def aligned(size: int) -> memoryview:
    """Memory at a page's begin, as the engine's is."""
    return memoryview(mmap.mmap(-1, size))


def count_descriptors(path: Path) -> tuple[int, int]:
    """Our descriptors of the file: buffered, direct."""
    counts = [0, 0]
    for name in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{name}") == str(path):
            flags = int(Path(f"/proc/self/fdinfo/{name}").read_text().split("flags:")[1].split()[0], 8)
            counts[bool(flags & os.O_DIRECT)] += 1
    return counts[0], counts[1]


def test_direct_store_has_a_direct_descriptor(path: Path) -> None:
    make_file(path)
    with FileStore(path) as store:
        assert store.direct
        assert count_descriptors(path) == (1, 1)
    assert count_descriptors(path) == (0, 0)


def test_buffered_store_has_no_direct_descriptor(path: Path) -> None:
    make_file(path)
    with FileStore(path, direct=False) as store:
        assert not store.direct
        assert count_descriptors(path) == (1, 0)


def test_direct_read_leaves_nothing_in_the_page_cache(path: Path) -> None:
    data, memory = make_file(path), aligned(BLOCKS * BLOCK)
    with FileStore(path) as store:
        store.read_into(0, memory)
    assert memory == data
    assert list_cached(path) == []


def test_buffered_read_leaves_its_pages_in_the_page_cache(path: Path) -> None:
    make_file(path)
    with FileStore(path, direct=False) as store:
        store.read_into(0, aligned(BLOCKS * BLOCK))
    assert list_cached(path) == list(range(BLOCKS))


def test_direct_write_leaves_nothing_in_the_page_cache(path: Path) -> None:
    make_file(path)
    memory = aligned(BLOCKS * BLOCK)
    memory[:] = make_bytes(4, BLOCKS * BLOCK)
    with FileStore(path, "r+") as store:
        store.write(0, memory)
    assert list_cached(path) == []
    assert path.read_bytes() == memory


@pytest.mark.parametrize("tail", [1, 511, 512, 513, 4095])
def test_last_partial_block_alone_goes_through_the_page_cache(path: Path, tail: int) -> None:
    size = BLOCKS * BLOCK + tail
    make_file(path, size)
    memory = aligned((BLOCKS + 1) * BLOCK)[:size]
    memory[:] = make_bytes(4, size)
    with FileStore(path, "r+") as store:
        store.write(0, memory)
        store.flush()
        assert list_cached(path) == [BLOCKS]
    assert path.read_bytes() == memory


def test_unaligned_request_sends_its_middle_past_the_page_cache(path: Path) -> None:
    data = make_file(path)
    memory = aligned(8 * BLOCK)[BLOCK - 100 : 6 * BLOCK + 100]
    with FileStore(path) as store:
        store.read_into(10 * BLOCK - 100, memory)
    assert memory == data[10 * BLOCK - 100 : 15 * BLOCK + 100]
    assert not set(range(11, 14)) & set(list_cached(path))


def test_unaligned_memory_is_filled_all_the_same(path: Path) -> None:
    data = make_file(path)
    memory = aligned(3 * BLOCK)[1 : BLOCK + 1]
    with FileStore(path, direct=True) as store:
        store.read_into(BLOCK, memory)
    assert memory == data[BLOCK : 2 * BLOCK]


def test_aligned_offset_stays_direct(path: Path) -> None:
    data, memory = make_file(path), aligned(8 * BLOCK)
    with FileStore(path, offset=3 * BLOCK) as store:
        assert store.direct
        store.read_into(0, memory)
    assert memory == data[3 * BLOCK : 11 * BLOCK]
    assert list_cached(path) == []


def test_unaligned_offset_makes_the_store_buffered(path: Path) -> None:
    make_file(path)
    with FileStore(path, offset=128) as store:
        assert not store.direct
        assert count_descriptors(path) == (1, 0)


def test_unaligned_offset_with_direct_asked_for_raises_naming_it(path: Path) -> None:
    make_file(path)
    with pytest.raises(errors.StoreError, match="offset 128 is not a multiple of 4096"):
        FileStore(path, offset=128, direct=True)
    assert count_descriptors(path) == (0, 0)


def test_part_that_begins_off_a_block_is_buffered_and_the_others_direct(direct_folder: Path) -> None:
    parts = [(direct_folder / "a", 8 * BLOCK + 1), (direct_folder / "b", 8 * BLOCK - 1), (direct_folder / "c", BLOCK)]
    with FileStore(parts, "w+") as store:
        assert not store.direct
        assert [count_descriptors(path) for path, _ in parts] == [(1, 1), (1, 0), (1, 1)]


def test_part_that_begins_off_a_block_with_direct_asked_for_raises_and_leaves_no_file(direct_folder: Path) -> None:
    parts = [(direct_folder / "parts-a", BLOCK + 1), (direct_folder / "parts-b", BLOCK)]
    with pytest.raises(errors.StoreError, match="begins at byte 4097 of the store"):
        FileStore(parts, "w+", direct=True)
    assert not any(path.exists() for path, _ in parts)


def test_direct_on_tmpfs_raises_and_auto_is_buffered(mount: Callable[..., Path]) -> None:
    path = mount("tmpfs", 1 << 20) / "x"
    with pytest.raises(errors.StoreError, match="no direct I/O"):
        FileStore(path, "w+", size=BLOCK, direct=True)
    assert not path.exists()
    with FileStore(path, "w+", size=BLOCK) as store:
        assert not store.direct


def test_direct_read_sees_a_buffered_write_and_the_other_way_round(path: Path) -> None:
    make_file(path)
    with FileStore(path, "r+") as store:
        for turn in range(200):
            whole, memory = aligned(2 * BLOCK), aligned(2 * BLOCK)
            whole[:] = bytes([turn]) * (2 * BLOCK)
            store.write(4 * BLOCK, whole)
            store.write(5 * BLOCK - 3, b"buffered")
            store.read_into(4 * BLOCK, memory)
            expected = bytearray(whole)
            expected[BLOCK - 3 : BLOCK + 5] = b"buffered"
            assert memory == expected
            assert read(store, 5 * BLOCK - 3, 8) == b"buffered"


def test_direct_and_buffered_writes_in_parallel_side_by_side_all_arrive(path: Path) -> None:
    """Neighbouring blocks, one written direct and one in unaligned pieces, by two threads at once."""
    make_file(path)
    turns = 150
    with FileStore(path, "r+") as store:

        def write_direct() -> None:
            memory = aligned(BLOCK)
            for turn in range(turns):
                memory[:] = bytes([turn]) * BLOCK
                for block in range(0, 16, 2):
                    store.write(block * BLOCK, memory)

        def write_pieces() -> None:
            for turn in range(turns):
                for block in range(1, 16, 2):
                    store.write(block * BLOCK, bytes([turn]) * 1000)
                    store.write(block * BLOCK + 1000, bytes([turn]) * 3096)

        threads = [threading.Thread(target=write_direct), threading.Thread(target=write_pieces)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        store.flush()
        assert read(store, 0, 16 * BLOCK) == bytes([turns - 1]) * (16 * BLOCK)
    assert path.read_bytes()[: 16 * BLOCK] == bytes([turns - 1]) * (16 * BLOCK)


def test_bytes_another_process_has_in_the_page_cache_are_seen(path: Path) -> None:
    make_file(path)
    memory = aligned(BLOCK)
    with path.open("r+b", buffering=0) as other, FileStore(path) as store:
        os.pwrite(other.fileno(), b"dirty", 2 * BLOCK)
        store.read_into(2 * BLOCK, memory)
        assert bytes(memory[:5]) == b"dirty"

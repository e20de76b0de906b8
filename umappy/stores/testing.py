"""The tests that every store must pass, ours and a user's. Needs pytest.

class TestMyStore(StoreContract):
    def create(self, folder, size):
        return MyStore.create(folder / "x", size)

    def reopen(self, folder, *, writable):
        return MyStore(folder / "x", writable=writable)
"""

from __future__ import annotations

import abc
import mmap
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from umappy.stores.base import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK = 4096
# Not a multiple of any block, and several of them.
SIZE = 9 * BLOCK + 1234
STRETCHES = {
    "one block": (BLOCK, BLOCK),
    "several blocks": (2 * BLOCK, 4 * BLOCK),
    "first byte": (0, 1),
    "last byte": (SIZE - 1, 1),
    "last partial block": (9 * BLOCK, 1234),
    "last two blocks": (8 * BLOCK, BLOCK + 1234),
    "inside a block": (BLOCK + 7, 100),
    "across a block's end": (2 * BLOCK - 3, 6),
    "unaligned begin": (BLOCK + 513, 3 * BLOCK - 513),
    "unaligned end": (BLOCK, 3 * BLOCK + 511),
    "everything": (0, SIZE),
}
PAGES = 64


class StoreContract(abc.ABC):
    """Inherit, name the class Test..., say how a store is made and opened again."""

    @abc.abstractmethod
    def create(self, folder: Path, size: int) -> Store:
        """Returns a new writable store of `size` zero bytes; `folder` is empty before."""

    @abc.abstractmethod
    def reopen(self, folder: Path, *, writable: bool) -> Store:
        """Opens what `create` made in `folder` and somebody closed."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with self.create(tmp_path, SIZE) as store:
            yield store

    def test_size_of_a_new_store_is_as_asked(self, store: Store) -> None:
        assert store.size == SIZE

    def test_writable_of_a_new_store_is_true(self, store: Store) -> None:
        assert store.writable

    def test_read_of_a_new_store_gives_zeros(self, store: Store) -> None:
        assert read(store) == bytes(SIZE)

    @pytest.mark.parametrize("stretch", STRETCHES.values(), ids=STRETCHES.keys())
    def test_read_gives_what_was_written(self, store: Store, stretch: tuple[int, int]) -> None:
        offset, length = stretch
        data = make_bytes(1, length)
        write(store, offset, data)
        assert read(store, offset, length) == data

    @pytest.mark.parametrize("stretch", STRETCHES.values(), ids=STRETCHES.keys())
    def test_write_leaves_the_bytes_around_it_alone(self, store: Store, stretch: tuple[int, int]) -> None:
        offset, length = stretch
        before, data = make_bytes(1, SIZE), make_bytes(2, length)
        write(store, 0, before)
        write(store, offset, data)
        assert read(store) == before[:offset] + data + before[offset + length :]

    @pytest.mark.parametrize("stretch", STRETCHES.values(), ids=STRETCHES.keys())
    def test_read_of_a_stretch_gives_only_that(self, store: Store, stretch: tuple[int, int]) -> None:
        offset, length = stretch
        """Here the memory is not aligned to anything."""
        data = make_bytes(1, SIZE)
        store.write(0, data)
        memory = bytearray(b"\xee" * (length + 2))
        store.read_into(offset, memoryview(memory)[1:-1])
        assert memory == b"\xee" + data[offset : offset + length] + b"\xee"

    def test_read_into_returns_the_count_or_none(self, store: Store) -> None:
        assert store.read_into(0, bytearray(100)) in {None, 100}

    def test_read_of_nothing_is_allowed_at_both_ends(self, store: Store) -> None:
        store.read_into(0, bytearray())
        store.read_into(SIZE, bytearray())

    def test_write_of_nothing_changes_nothing(self, store: Store) -> None:
        store.write(SIZE, b"")
        assert read(store) == bytes(SIZE)

    @pytest.mark.parametrize("offset", [-1, SIZE, SIZE - 1, SIZE + BLOCK, 1 << 62])
    def test_read_past_an_end_raises(self, store: Store, offset: int) -> None:
        with pytest.raises(ValueError, match=str(offset)):
            store.read_into(offset, bytearray(2))

    @pytest.mark.parametrize("offset", [-1, SIZE, SIZE - 1, SIZE + BLOCK, 1 << 62])
    def test_write_past_an_end_raises_and_changes_nothing(self, store: Store, offset: int) -> None:
        with pytest.raises(ValueError, match=str(offset)):
            store.write(offset, b"ab")
        assert read(store) == bytes(SIZE)

    @pytest.mark.parametrize(
        "buffer", [b"data", bytearray(b"data"), memoryview(b"(data)")[1:5]], ids=["bytes", "bytearray", "view"]
    )
    def test_write_takes_any_buffer(self, store: Store, buffer: Buffer) -> None:
        store.write(10, buffer)
        assert read(store, 10, 4) == b"data"

    def test_flush_of_an_untouched_store_passes(self, store: Store) -> None:
        store.flush()
        store.flush()

    def test_reopen_after_flush_gives_what_was_written(self, tmp_path: Path) -> None:
        data = make_bytes(1, SIZE)
        with self.create(tmp_path, SIZE) as store:
            write(store, 0, data)
            store.flush()
        with self.reopen(tmp_path, writable=False) as store:
            assert store.size == SIZE
            assert read(store) == data

    def test_reopen_for_writing_changes_only_what_is_written(self, tmp_path: Path) -> None:
        data = make_bytes(1, SIZE)
        with self.create(tmp_path, SIZE) as store:
            write(store, 0, data)
            store.flush()
        with self.reopen(tmp_path, writable=True) as store:
            write(store, BLOCK, b"new")
            store.flush()
        with self.reopen(tmp_path, writable=False) as store:
            assert read(store) == data[:BLOCK] + b"new" + data[BLOCK + 3 :]

    def test_write_to_a_read_only_store_raises_and_changes_nothing(self, tmp_path: Path) -> None:
        self.create(tmp_path, SIZE).close()
        with self.reopen(tmp_path, writable=False) as store:
            assert not store.writable
            with pytest.raises((OSError, TypeError), match="read"):
                store.write(0, b"a")
            assert read(store) == bytes(SIZE)

    def test_close_twice_does_nothing(self, tmp_path: Path) -> None:
        store = self.create(tmp_path, SIZE)
        store.close()
        store.close()

    def test_use_after_close_raises(self, tmp_path: Path) -> None:
        store = self.create(tmp_path, SIZE)
        store.close()
        with pytest.raises(ValueError, match="closed"):
            store.read_into(0, bytearray(1))
        with pytest.raises(ValueError, match="closed"):
            store.write(0, b"a")
        with pytest.raises(ValueError, match="closed"):
            store.flush()

    def test_with_closes(self, tmp_path: Path) -> None:
        with self.create(tmp_path, SIZE) as store:
            pass
        with pytest.raises(ValueError, match="closed"):
            store.read_into(0, bytearray(1))

    def test_writes_in_parallel_to_different_pages_all_arrive(self, tmp_path: Path) -> None:
        pages = [make_bytes(i, BLOCK) for i in range(PAGES)]
        with self.create(tmp_path, PAGES * BLOCK) as store, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: write(store, i * BLOCK, pages[i]), range(PAGES)))
            assert read(store) == b"".join(pages)

    def test_reads_in_parallel_with_writes_elsewhere_are_right(self, tmp_path: Path) -> None:
        """Half of the pages are written over and over while the others, between them, are read."""
        with self.create(tmp_path, PAGES * BLOCK) as store:
            still = {i: make_bytes(i, BLOCK) for i in range(0, PAGES, 2)}
            for i, page in still.items():
                write(store, i * BLOCK, page)
            stop = threading.Event()

            def write_others() -> None:
                turn = 0
                while not stop.is_set():
                    turn += 1
                    for i in range(1, PAGES, 2):
                        write(store, i * BLOCK, bytes([turn % 256]) * BLOCK)

            with ThreadPoolExecutor(4) as pool:
                writer = pool.submit(write_others)
                try:
                    for _ in range(4):
                        got = pool.map(lambda i: read(store, i * BLOCK, BLOCK), still)
                        assert list(got) == list(still.values())
                finally:
                    stop.set()
                writer.result(30)

    def test_random_calls_agree_with_a_bytearray(self, tmp_path: Path) -> None:
        chance = random.Random(8)
        oracle = bytearray(SIZE)
        with self.create(tmp_path, SIZE) as store:
            for _ in range(300):
                offset = chance.randrange(SIZE)
                length = min(chance.choice([1, 100, 512, BLOCK, 3 * BLOCK]), SIZE - offset)
                if chance.random() < 0.5:
                    offset -= offset % BLOCK
                match chance.choice(["write", "read", "flush"] if chance.random() < 0.2 else ["write", "read"]):
                    case "write":
                        oracle[offset : offset + length] = data = chance.randbytes(length)
                        write(store, offset, data)
                    case "read":
                        assert read(store, offset, length) == oracle[offset : offset + length]
                    case "flush":
                        store.flush()
            assert read(store) == oracle


def read(store: Store, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of `store` from `offset` on, to its end when `length` is None."""
    memory = make_memory(offset, store.size - offset if length is None else length)
    count = store.read_into(offset, memory)
    assert count is None or count == len(memory)
    return bytes(memory)


def write(store: Store, offset: int, data: Buffer) -> None:
    """Writes `data` from memory as the engine's."""
    memory = make_memory(offset, len(memoryview(data)))
    memory[:] = data
    store.write(offset, memory)


def make_memory(offset: int, length: int) -> memoryview:
    """Memory that lies in its page as `offset` in its block: fit for direct I/O, as the engine's is."""
    begin = offset % mmap.PAGESIZE
    return memoryview(mmap.mmap(-1, begin + length or 1))[begin : begin + length]


def make_bytes(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)

"""A store as a user writes it, on nothing but the base class."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from umappy.stores import Store
from umappy.stores.testing import StoreContract

if TYPE_CHECKING:
    from typing_extensions import Buffer


class MemoryStore(Store):
    """Bytes in memory that outlive the store."""

    def __init__(self, memory: bytearray, *, writable: bool) -> None:
        self.memory, self.size, self.writable, self.closed = memory, len(memory), writable, False

    def read_into(self, offset: int, buffer: "Buffer") -> int:
        self.check(offset, len(view := memoryview(buffer).cast("B")))
        view[:] = self.memory[offset : offset + len(view)]
        return len(view)

    def write(self, offset: int, buffer: "Buffer") -> None:
        if not self.writable:
            super().write(offset, buffer)
        self.check(offset, len(view := memoryview(buffer).cast("B")))
        self.memory[offset : offset + len(view)] = view

    def flush(self) -> None:
        self.check(0, 0)

    def close(self) -> None:
        self.closed = True

    def check(self, offset: int, length: int) -> None:
        if self.closed:
            raise ValueError("closed")
        if not 0 <= offset <= self.size - length:
            raise ValueError(f"{length} bytes at {offset} pass {self.size}")


class TestMemoryStore(StoreContract):
    memories: ClassVar[dict[Path, bytearray]] = {}

    def create(self, folder: Path, size: int) -> Store:
        self.memories[folder] = bytearray(size)
        return MemoryStore(self.memories[folder], writable=True)

    def reopen(self, folder: Path, *, writable: bool) -> Store:
        return MemoryStore(self.memories[folder], writable=writable)


class ConstantStore(Store):
    """The least that a store must have."""

    size = 10

    def read_into(self, offset: int, buffer: "Buffer") -> None:
        memoryview(buffer)[:] = b"c" * len(memoryview(buffer))


def test_store_with_read_into_alone_is_whole() -> None:
    memory = bytearray(3)
    with ConstantStore() as store:
        store.read_into(0, memory)
        store.flush()
    assert memory == b"ccc"
    assert not store.writable


def test_store_without_read_into_cannot_be_made() -> None:
    class Nothing(Store):
        size = 1

    with pytest.raises(TypeError, match="read_into"):
        Nothing()


def test_write_to_a_store_without_write_raises() -> None:
    with pytest.raises(TypeError, match="ConstantStore has no write"):
        ConstantStore().write(0, b"a")


class FailingCloseStore(ConstantStore):
    def close(self) -> None:
        raise OSError("cannot close")


def test_with_raises_what_close_raises() -> None:
    with pytest.raises(OSError, match="cannot close"), FailingCloseStore():
        pass


def test_with_keeps_the_bodys_exception_and_notes_that_close_failed() -> None:
    with pytest.raises(KeyError) as caught, FailingCloseStore():
        raise KeyError("body")
    assert "cannot close" in caught.value.__notes__[0]


def test_release_of_a_store_that_is_not_native_raises() -> None:
    with pytest.raises(TypeError, match="cannot be mapped"):
        ConstantStore()._release()

"""FileStore where the file shrinks, the disk is full, or the disk fails: an error that says where, and nothing else."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from umappy import errors
from umappy.stores import FileStore
from umappy.stores.testing import make_bytes, read, write

BLOCK = 4096
SIZE = 16 * BLOCK


@pytest.fixture(params=[False, "auto"], ids=["buffered", "auto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileStore]:
    with FileStore(tmp_path / "x", "w+", size=SIZE, direct=request.param) as store:
        write(store, 0, make_bytes(1, SIZE))
        yield store


@pytest.mark.parametrize("end", [0, 100, BLOCK, 5 * BLOCK, 5 * BLOCK + 100, SIZE - 1])
def test_read_of_a_file_that_shrank_raises_at_its_end(store: FileStore, end: int) -> None:
    os.truncate(store.path, end)
    with pytest.raises(errors.StoreTruncatedError, match=store.path) as caught:
        read(store)
    assert (caught.value.op, caught.value.offset, caught.value.length) == ("read", end, SIZE - end)


def test_read_before_the_end_of_a_file_that_shrank_works(store: FileStore) -> None:
    os.truncate(store.path, 5 * BLOCK + 100)
    assert read(store, 0, 5 * BLOCK + 100) == make_bytes(1, SIZE)[: 5 * BLOCK + 100]


@pytest.mark.parametrize(
    ("end", "offset"), [(0, 0), (5 * BLOCK, 5 * BLOCK), (5 * BLOCK, 4 * BLOCK), (5 * BLOCK, 8 * BLOCK)]
)
def test_write_past_the_end_of_a_file_that_shrank_raises_and_leaves_it_short(
    store: FileStore, end: int, offset: int
) -> None:
    """Extending it would make the bytes between read as zeros that nobody wrote."""
    before = make_bytes(1, SIZE)[:end]
    os.truncate(store.path, end)
    with pytest.raises(errors.StoreTruncatedError, match=store.path) as caught:
        write(store, offset, bytes(2 * BLOCK))
    assert (caught.value.op, caught.value.offset) == ("write", offset)
    assert Path(store.path).read_bytes() == before


def test_write_before_the_end_of_a_file_that_shrank_works(store: FileStore) -> None:
    os.truncate(store.path, 5 * BLOCK)
    write(store, 3 * BLOCK, b"x" * 2 * BLOCK)
    assert read(store, 3 * BLOCK, 2 * BLOCK) == b"x" * 2 * BLOCK


def test_file_that_was_renamed_is_still_written(store: FileStore) -> None:
    moved = store.path + ".moved"
    os.rename(store.path, moved)
    store.write(0, b"after")
    store.flush()
    assert Path(moved).read_bytes()[:5] == b"after"


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("direct", [False, "auto"], ids=["buffered", "auto"])
def test_full_disk_raises_with_place_and_takes_the_bytes_once_there_is_space(
    mount: Callable[..., Path], kind: str, direct: bool | str
) -> None:
    size, step = 8 << 20, 64 * BLOCK
    folder = mount(kind, size)
    hog = folder / "hog"
    hog.write_bytes(bytes(size // 4))
    with FileStore(folder / "x", "w+", size=2 * size, direct=direct) as store:
        offset, failure = fill(store, step)
        assert isinstance(failure, errors.StoreFullError)
        assert (failure.op, failure.errno) == ("write", errno.ENOSPC)
        assert failure.offset is not None
        assert offset <= failure.offset < offset + step
        assert str(folder / "x") in str(failure)
        hog.unlink()
        os.sync()
        write(store, offset, make_bytes(offset, step))
        store.flush()
        for at in range(0, offset + step, step):
            assert read(store, at, step) == make_bytes(at, step)


def fill(store: FileStore, step: int) -> tuple[int, errors.StoreError]:
    """Writes random bytes until it fails; where that was, and how."""
    for offset in range(0, store.size, step):
        try:
            write(store, offset, make_bytes(offset, step))
        except errors.StoreError as error:
            return offset, error
    raise AssertionError("nothing failed")


def test_flush_that_failed_goes_on_failing(mount: Callable[..., Path]) -> None:
    """A real failed write-back: the disk is an image on a file system that has no space for what is written to it.

    The kernel reports it once and calls the file clean, though the bytes are gone: the next flush must not succeed.
    """
    cramped = mount("tmpfs", 6 << 20)
    folder = mount("ext4", 64 << 20, cramped / "image")
    with FileStore(folder / "x", "w+", size=32 << 20, direct=False) as store:
        store.write(0, make_bytes(1, 16 << 20))
        with pytest.raises(errors.StoreError, match="flush failed") as caught:
            store.flush()
        assert caught.value.op == "flush"
        assert caught.value.errno in {errno.EIO, errno.ENOSPC}
        subprocess.run(["mount", "-o", "remount,size=128m", str(cramped)], check=True)
        store.write(0, b"x")
        with pytest.raises(errors.StoreError, match="may be lost"):
            store.flush()


def test_direct_write_to_a_failing_disk_raises(mount: Callable[..., Path]) -> None:
    cramped = mount("tmpfs", 6 << 20)
    folder = mount("ext4", 64 << 20, cramped / "image")
    with FileStore(folder / "x", "w+", size=32 << 20, direct=True) as store:
        offset, failure = fill(store, 1 << 20)
        assert (failure.op, failure.offset) == ("write", offset)
        assert failure.errno in {errno.EIO, errno.ENOSPC}
        assert str(folder / "x") in str(failure)

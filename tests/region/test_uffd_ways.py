"""The three ways to userfaultfd; in user-mode-only a program's own accesses fault, the kernel's fail with EFAULT."""

import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy._engine import ffi, lib
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]

PAGE = 4096
SIZE = (1 << 20) + 77
WAYS = {"device": lib.UM_UFFD_DEVICE, "syscall": lib.UM_UFFD_SYSCALL, "user-mode-only": lib.UM_UFFD_USER_MODE_ONLY}
DATA = make_bytes(1, SIZE)


def skip_without(way: str) -> None:
    if lib.um_uffd_probe(WAYS[way], ffi.new("uint64_t *")) < 0:
        pytest.skip(f"this process may not open userfaultfd by way of {way}")


@pytest.fixture(params=WAYS)
def region(
    request: pytest.FixtureRequest, make_pager: MakePager, map_store: MapStore, make_file: MakeFile
) -> umappy.Region:
    skip_without(request.param)
    return map_store(make_file(SIZE), pager=make_pager(uffd=request.param), mode="r+")


@pytest.fixture
def user_mode(make_pager: MakePager, map_store: MapStore, make_file: MakeFile) -> umappy.Region:
    """All of it fits into its pager's memory, so that nothing is evicted unasked."""
    skip_without("user-mode-only")
    return map_store(make_file(SIZE), pager=make_pager(memory=8 << 20, uffd="user-mode-only"), mode="r+")


@pytest.mark.parametrize("way", WAYS)
def test_pager_opens_userfaultfd_the_way_it_was_told(make_pager: MakePager, way: str) -> None:
    skip_without(way)
    assert make_pager(uffd=way).stats().uffd == WAYS[way]


def test_reads_give_the_file(region: umappy.Region) -> None:
    assert region[:] == DATA
    with memoryview(region) as view:
        assert bytes(view) == DATA
    assert [region[i] for i in range(0, SIZE, 997)] == list(DATA[::997])


def test_writes_reach_the_file(region: umappy.Region) -> None:
    new = make_bytes(2, SIZE)
    region[:] = new
    region[5] ^= 1
    region[5] ^= 1
    region.flush()
    assert Path(region.store.path).read_bytes() == new


def test_first_writes_to_clean_pages_are_seen(region: umappy.Region) -> None:
    assert region[:] == DATA
    for page in range(0, SIZE, PAGE):
        region[page] ^= 0xFF
    wanted = bytearray(DATA)
    for page in range(0, SIZE, PAGE):
        wanted[page] ^= 0xFF
    region.close()
    assert Path(region.store.path).read_bytes() == wanted


def test_sort_and_ufuncs_equal_those_in_memory(region: umappy.Region) -> None:
    array = np.frombuffer(region, np.int64, SIZE // 8)
    expected = np.frombuffer(DATA, np.int64, SIZE // 8).copy()
    for each in (array, expected):
        each.sort()
        each += 1
    assert (array == expected).all()
    assert repr(array) == repr(expected)


def test_overwrite_prefetch_and_evict_work(region: umappy.Region) -> None:
    region.overwrite(3 * PAGE, bytes(10 * PAGE))
    region.evict()
    region.prefetch(wait=True)
    assert region[:] == DATA[: 3 * PAGE] + bytes(10 * PAGE) + DATA[13 * PAGE :]


def test_threads_count_in_shared_pages(region: umappy.Region) -> None:
    array = np.frombuffer(region, np.uint8)

    def add(part: np.ndarray) -> None:
        for _ in range(5):
            np.add(part, 1, out=part)

    threads = [threading.Thread(target=add, args=(array[first::4],)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (array == np.frombuffer(DATA, np.uint8) + np.uint8(5)).all()


def test_close_with_a_living_view_goes_on_working(region: umappy.Region) -> None:
    with memoryview(region) as view:
        view[0:5] = b"hello"
        with pytest.raises(BufferError):
            region.close()
        view[5:9] = b" all"
    region.close()
    assert Path(region.store.path).read_bytes() == b"hello all" + DATA[9:]


def test_user_mode_only_is_told_once_a_pager(make_pager: MakePager, caplog: pytest.LogCaptureFixture) -> None:
    skip_without("user-mode-only")
    with caplog.at_level(logging.WARNING, "umappy"):
        make_pager(uffd="user-mode-only")
    assert ["EFAULT" in record.message for record in caplog.records] == [True]


def test_user_mode_only_write_from_absent_pages_fails_and_harms_nothing(
    user_mode: umappy.Region, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as file, pytest.raises(OSError, match="Bad address") as caught:
        file.write(user_mode)
    assert caught.value.errno == errno.EFAULT
    assert user_mode[:] == DATA
    user_mode.check()


def test_user_mode_only_write_from_resident_pages_works(user_mode: umappy.Region, tmp_path: Path) -> None:
    user_mode.prefetch(wait=True)
    with (tmp_path / "out").open("wb", buffering=0) as file:
        assert file.write(user_mode) == SIZE
    assert (tmp_path / "out").read_bytes() == DATA


def test_user_mode_only_read_into_clean_pages_fails_and_changes_nothing(
    user_mode: umappy.Region, make_file: MakeFile
) -> None:
    """They are protected, and the kernel's write cannot be told from none."""
    assert user_mode[:PAGE] == DATA[:PAGE]
    with (
        make_file(PAGE, 2).open("rb", buffering=0) as file,
        memoryview(user_mode) as view,
        view[:PAGE] as part,
        pytest.raises(OSError, match="Bad address"),
    ):
        file.readinto(part)
    assert user_mode[:] == DATA


def test_user_mode_only_read_into_dirty_pages_works(user_mode: umappy.Region, make_file: MakeFile) -> None:
    user_mode[:PAGE] = bytes(PAGE)
    with make_file(PAGE, 2).open("rb", buffering=0) as file, memoryview(user_mode) as view, view[:PAGE] as part:
        assert file.readinto(part) == PAGE
    user_mode.close()
    assert Path(user_mode.store.path).read_bytes() == make_bytes(2, PAGE) + DATA[PAGE:]

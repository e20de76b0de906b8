"""The kernel itself reads and writes a region, far larger than its memory; it faults as a program does."""

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]

MIB = 1 << 20
SIZE = 4 * MIB + 24


@pytest.fixture(params=[4 << 10, 64 << 10], ids=["4KiB", "64KiB"])
def region(request: pytest.FixtureRequest, map_store: MapStore, make_file: MakeFile) -> umappy.Region:
    return map_store(make_file(SIZE), page_size=request.param, mode="r+")


@pytest.fixture
def data() -> bytes:
    return make_bytes(1, SIZE)


def test_tofile_writes_the_bytes(region: umappy.Region, data: bytes, tmp_path: Path) -> None:
    np.frombuffer(region, np.uint8).tofile(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data


def test_write_of_the_whole_region_writes_the_bytes(region: umappy.Region, data: bytes, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as file:
        assert file.write(region) == SIZE
    assert (tmp_path / "out").read_bytes() == data


def test_readinto_the_region_reaches_its_store(region: umappy.Region, make_file: MakeFile) -> None:
    with make_file(SIZE, 2).open("rb", buffering=0) as file:
        assert file.readinto(region) == SIZE
    region.close()
    assert Path(region.store.path).read_bytes() == make_bytes(2, SIZE)


def test_preadv_into_scattered_parts_fills_them(region: umappy.Region, data: bytes, make_file: MakeFile) -> None:
    """More parts, each across a page's end, than the pager has memory for."""
    page = region.page_size
    starts = range(page - 8, SIZE - 16, page)
    wanted = bytearray(data)
    new = make_bytes(3, 16 * len(starts))
    for i, start in enumerate(starts):
        wanted[start : start + 16] = new[16 * i : 16 * i + 16]
    source = make_file(0)
    source.write_bytes(new)
    with memoryview(region) as view, source.open("rb") as file:
        parts = [view[start : start + 16] for start in starts]
        done = 0
        while parts[done // 16 :]:
            count = os.preadv(file.fileno(), parts[done // 16 : done // 16 + 1000], done)
            assert count > 0
            assert count % 16 == 0
            done += count
        for part in parts:
            part.release()
    assert region[:] == wanted


def test_file_copied_within_one_region_by_the_kernel_arrives(
    region: umappy.Region, data: bytes, tmp_path: Path
) -> None:
    """Out of one half through a file into the other."""
    half = SIZE // 2
    with memoryview(region) as view, (tmp_path / "between").open("w+b", buffering=0) as file:
        assert file.write(view[:half]) == half
        file.seek(0)
        assert file.readinto(view[half:]) == half
    assert region[:] == data[:half] * 2


def test_send_and_receive_through_a_socket_carry_the_bytes(region: umappy.Region, data: bytes) -> None:
    half = SIZE // 2
    sender, receiver = socket.socketpair()
    with sender, receiver, memoryview(region) as view:
        thread = threading.Thread(target=sender.sendall, args=(view[:half],))
        thread.start()
        target, got = view[half:], 0
        while got < half:
            got += receiver.recv_into(target[got:])
        thread.join()
        target.release()
    assert region[:] == data[:half] * 2


def test_two_regions_of_one_pager_in_one_call_copy(
    map_store: MapStore, make_file: MakeFile, make_pager: Callable[..., umappy.Pager]
) -> None:
    pager = make_pager()
    one, two = (map_store(make_file(MIB, seed), pager=pager, mode="r+") for seed in (1, 2))
    np.copyto(np.frombuffer(one, np.uint8), np.frombuffer(two, np.uint8))
    assert one[:] == two[:] == make_bytes(2, MIB)


def test_stat_of_a_path_that_lies_in_the_region_works(map_store: MapStore, tmp_path: Path) -> None:
    """A string the kernel reads, in a page that is absent."""
    path = os.fsencode(tmp_path / "x")
    (tmp_path / "x").write_bytes(bytes(4096) + path + bytes(100))
    region = map_store(tmp_path / "x")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.access(ctypes.c_void_p(region.address + 4096), os.R_OK) == 0

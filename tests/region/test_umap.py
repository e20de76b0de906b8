"""umap: stores and paths, modes, sizes, page sizes; and every argument that does not fit."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy._engine import lib
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]

SIZE = 100_000


@pytest.fixture
def path(make_file: MakeFile) -> Path:
    return make_file(SIZE)


@pytest.mark.parametrize("kind", [str, Path])
def test_path_without_mode_maps_read_only(map_store: MapStore, path: Path, kind: Callable[[Path], object]) -> None:
    region = map_store(kind(path))
    assert (region.mode, len(region), region[:]) == ("r", SIZE, make_bytes(1, SIZE))


def test_path_of_bytes_raises(path: Path) -> None:
    with pytest.raises(TypeError, match="wants a umappy store or the path of a file"):
        umappy.umap(os.fsencode(path))  # type: ignore[arg-type]


def test_store_without_mode_maps_as_it_was_opened(map_store: MapStore, path: Path) -> None:
    assert map_store(umappy.FileStore(path)).mode == "r"
    assert map_store(umappy.FileStore(path, "r+")).mode == "r+"


def test_writable_store_with_mode_r_maps_read_only(map_store: MapStore, path: Path) -> None:
    region = map_store(umappy.FileStore(path, "r+"), mode="r")
    assert np.frombuffer(region, np.uint8).flags.writeable is False


@pytest.mark.parametrize("mode", ["r", "readonly", None])
def test_read_only_region_exports_read_only_buffers(map_store: MapStore, path: Path, mode: str | None) -> None:
    region = map_store(path, mode=mode)
    array = np.frombuffer(region, np.uint8)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with memoryview(region) as view:
        assert view.readonly
    with pytest.raises(TypeError, match="readonly"):
        region[0] = 1
    with path.open("rb") as file, pytest.raises(TypeError, match="read-write"):
        file.readinto(region)
    del array
    region.close()
    assert path.read_bytes() == make_bytes(1, SIZE)


@pytest.mark.parametrize("mode", ["r+", "readwrite"])
def test_writable_region_exports_writable_buffers(map_store: MapStore, path: Path, mode: str) -> None:
    region = map_store(path, mode=mode)
    np.frombuffer(region, np.uint8)[:] = 7
    region.close()
    assert path.read_bytes() == b"\x07" * SIZE


def test_mode_r_plus_with_larger_size_extends_the_file(map_store: MapStore, path: Path) -> None:
    region = map_store(path, SIZE + 5000, mode="r+")
    assert region[:] == make_bytes(1, SIZE) + bytes(5000)
    region[-1] = 1
    region.close()
    assert path.read_bytes() == make_bytes(1, SIZE) + bytes(4999) + b"\x01"


def test_mode_r_plus_on_an_empty_file_with_size_makes_it_that_long(map_store: MapStore, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert map_store(tmp_path / "x", 5000, mode="r+")[:] == bytes(5000)


@pytest.mark.parametrize("mode", ["w+", "write"])
def test_mode_w_plus_empties_the_file(map_store: MapStore, path: Path, mode: str) -> None:
    region = map_store(path, "20KiB", mode=mode)
    assert region[:] == bytes(20 << 10)
    region[5] = 5
    region.close()
    assert path.read_bytes() == bytes(5) + b"\x05" + bytes((20 << 10) - 6)


def test_mode_w_plus_creates_the_file(map_store: MapStore, tmp_path: Path) -> None:
    map_store(tmp_path / "new", 4097, mode="w+").close()
    assert (tmp_path / "new").read_bytes() == bytes(4097)


def test_mode_w_plus_without_size_raises_and_leaves_the_file(path: Path) -> None:
    with pytest.raises(ValueError, match="size"):
        umappy.umap(path, mode="w+")
    assert path.read_bytes() == make_bytes(1, SIZE)


@pytest.mark.parametrize("is_closed", [False, True])
def test_mode_w_plus_in_a_pager_that_cannot_take_it_raises_and_leaves_the_file(
    path: Path, make_pager: MakePager, is_closed: bool
) -> None:
    pager = make_pager()
    if is_closed:
        pager.close()
    with pytest.raises((umappy.BudgetError, umappy.ClosedError)):
        umappy.umap(path, SIZE, mode="w+", page_size="64MiB", pager=pager)
    assert path.read_bytes() == make_bytes(1, SIZE)


def test_mode_x_creates_the_file(map_store: MapStore, tmp_path: Path) -> None:
    region = map_store(tmp_path / "new", 4097, mode="x")
    region[:3] = b"abc"
    region.close()
    assert (tmp_path / "new").read_bytes() == b"abc" + bytes(4094)


def test_mode_x_on_a_file_that_exists_raises(path: Path) -> None:
    with pytest.raises(FileExistsError):
        umappy.umap(path, SIZE, mode="x")


def test_mode_as_second_argument_raises_and_says_so(path: Path) -> None:
    with pytest.raises(TypeError, match="write mode='r\\+'"):
        umappy.umap(path, "r+")
    with pytest.raises(TypeError, match="write mode='r'"):
        umappy.umap(path, "r")


@pytest.mark.parametrize("mode", ["rw", "a", "c", ""])
def test_mode_that_is_none_raises_and_names_those_there_are(path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match=r"mode is .*wants one of 'r', .*'r\+'"):
        umappy.umap(path, mode=mode)


@pytest.mark.parametrize("mode", [5, b"r", True])
def test_mode_of_another_type_raises(path: Path, mode: object) -> None:
    with pytest.raises(TypeError, match="mode is"):
        umappy.umap(path, mode=mode)  # type: ignore[arg-type]


def test_mode_that_is_none_leaves_a_given_store_open(path: Path, make_pager: MakePager) -> None:
    with umappy.FileStore(path) as store:
        with pytest.raises(ValueError, match="mode is 'rw'"):
            umappy.umap(store, mode="rw", pager=make_pager())
        assert store.read_into(0, bytearray(1)) in (None, 1)


def test_writable_mode_on_a_store_opened_for_reading_raises(path: Path, make_pager: MakePager) -> None:
    with umappy.FileStore(path) as store, pytest.raises(ValueError, match=r"opened for reading; .*mode='r\+'"):
        umappy.umap(store, mode="r+", pager=make_pager())


@pytest.mark.parametrize("mode", ["w+", "x"])
def test_creating_mode_on_a_store_raises(path: Path, mode: str, make_pager: MakePager) -> None:
    with umappy.FileStore(path, "r+") as store, pytest.raises(ValueError, match="for paths"):
        umappy.umap(store, mode=mode, pager=make_pager())


def test_size_0_raises(path: Path) -> None:
    with pytest.raises(ValueError, match="size is 0"):
        umappy.umap(path, 0)


def test_empty_file_without_size_raises_and_says_how(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(ValueError, match="is empty"):
        umappy.umap(tmp_path / "x")


def test_size_above_the_file_s_in_mode_r_raises_and_says_how(path: Path) -> None:
    with pytest.raises(ValueError, match=r"r\+"):
        umappy.umap(path, SIZE + 1)
    assert path.stat().st_size == SIZE


def test_size_above_the_store_s_raises_and_leaves_the_store_open(path: Path, make_pager: MakePager) -> None:
    with umappy.FileStore(path) as store:
        with pytest.raises(ValueError, match=rf"{SIZE + 1} bytes.* holds {SIZE}"):
            umappy.umap(store, SIZE + 1, pager=make_pager())
        assert not store.closed


@pytest.mark.parametrize("size", [-1, "4K", "many", 1 << 63])
def test_size_that_is_none_raises(path: Path, size: object) -> None:
    with pytest.raises(ValueError, match="size is"):
        umappy.umap(path, size)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1.5, b"1", True, [1]])
def test_size_of_another_type_raises(path: Path, size: object) -> None:
    with pytest.raises(TypeError, match="size is"):
        umappy.umap(path, size)  # type: ignore[arg-type]


@pytest.mark.parametrize("page_size", [0, 1, 2048, 4095, 5000, 12288, 128 << 20, "3KiB"])
def test_page_size_that_is_none_raises_and_names_the_range(path: Path, page_size: object) -> None:
    with pytest.raises(ValueError, match=r"page_size is .* power of two from 4 KiB to 64 MiB"):
        umappy.umap(path, page_size=page_size)  # type: ignore[arg-type]


def test_page_size_of_another_type_raises(path: Path) -> None:
    with pytest.raises(TypeError, match="page_size is"):
        umappy.umap(path, page_size=4096.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("page_size", [4096, 65536, 1 << 20, 64 << 20])
def test_budget_below_the_least_for_the_page_size_raises_and_names_it(
    path: Path, make_pager: MakePager, page_size: int
) -> None:
    least = lib.um_pager_memory_min(page_size, 1, 1)
    with pytest.raises(umappy.BudgetError, match=f"at least {least} bytes") as caught:
        # For the smallest pages the pager itself cannot be made.
        umappy.umap(path, page_size=page_size, pager=make_pager(memory=least - 1))
    assert isinstance(caught.value, MemoryError)


def test_budget_too_small_leaves_a_given_store_open(path: Path, make_pager: MakePager) -> None:
    with umappy.FileStore(path) as store:
        with pytest.raises(umappy.BudgetError):
            umappy.umap(store, page_size="1MiB", pager=make_pager())
        assert store.read_into(0, bytearray(1)) in (None, 1)


def test_page_size_auto_is_4_kib_under_any_budget(map_store: MapStore, make_pager: MakePager, path: Path) -> None:
    chosen = [
        map_store(path, page_size="auto", pager=make_pager(page_size)).page_size
        for page_size in (4096, 16384, 65536, 1 << 20)
    ]
    assert chosen == [4096] * 4


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        umappy.umap(tmp_path / "missing")


def test_folder_raises(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        umappy.umap(tmp_path)


def test_file_that_a_writer_has_raises_for_a_second_writer(map_store: MapStore, path: Path) -> None:
    map_store(path, mode="r+")
    with pytest.raises(umappy.StoreLockedError):
        umappy.umap(path, mode="r+")


def test_file_that_a_writer_has_maps_for_reading_and_shows_what_was_flushed(map_store: MapStore, path: Path) -> None:
    writer = map_store(path, mode="r+")
    writer[:5] = b"hello"
    writer.flush()
    assert map_store(path)[:5] == b"hello"


def test_file_closed_by_its_writer_maps_again_for_writing(map_store: MapStore, path: Path) -> None:
    map_store(path, mode="r+").close()
    map_store(path, mode="r+")[0] = 1


@pytest.mark.parametrize("name", ["s3://bucket/x", "gs://bucket/x"])
def test_url_raises_and_says_how_to_name_a_file_so(name: str) -> None:
    with pytest.raises(ValueError, match="no store for"):
        umappy.umap(name)


def test_compressed_file_that_is_none_raises_and_names_the_store_for_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.zst").write_bytes(b"text")
    with pytest.raises(umappy.StoreCorruptError, match="FileStore"):
        umappy.umap(tmp_path / "x.zst")


def test_store_that_is_mapped_cannot_be_mapped_again(map_store: MapStore, path: Path, make_pager: MakePager) -> None:
    store = umappy.FileStore(path)
    region = map_store(store)
    with pytest.raises(ValueError, match=r"mapped|owner"):
        umappy.umap(store, pager=make_pager())
    assert region[:10] == make_bytes(1, SIZE)[:10]


def test_store_that_is_closed_cannot_be_mapped(path: Path, make_pager: MakePager) -> None:
    store = umappy.FileStore(path)
    store.close()
    with pytest.raises(umappy.ClosedError):
        umappy.umap(store, pager=make_pager())


def test_closed_pager_raises_and_leaves_the_store_open(path: Path, make_pager: MakePager) -> None:
    pager = make_pager()
    pager.close()
    with umappy.FileStore(path) as store:
        with pytest.raises(umappy.ClosedError, match="the pager is closed"):
            umappy.umap(store, page_size=4096, pager=pager)
        assert not store.closed


def test_path_that_cannot_be_mapped_leaves_no_open_file(path: Path, make_pager: MakePager) -> None:
    """Else its lock would stay too."""
    with pytest.raises(umappy.BudgetError):
        umappy.umap(path, mode="r+", page_size="1MiB", pager=make_pager())
    with umappy.FileStore(path, "r+"):
        pass


def test_pager_of_another_type_raises(path: Path) -> None:
    with pytest.raises(TypeError, match="pager is"):
        umappy.umap(path, pager=1 << 30)  # type: ignore[arg-type]


def test_region_made_without_umap_raises() -> None:
    with pytest.raises(TypeError, match="umap"):
        umappy.Region(-1, 4096)


def test_region_tells_what_it_is(map_store: MapStore, path: Path, make_pager: MakePager) -> None:
    pager = make_pager()
    store = umappy.FileStore(path, "r+")
    region = map_store(store, pager=pager)
    assert (region.store, region.pager, region.page_size, region.mode) == (store, pager, 4096, "r+")
    assert np.frombuffer(region, np.uint8).__array_interface__["data"][0] == region.address
    assert repr(region) == f"<umappy.Region of 97.7 KiB, mode='r+', page_size=4 KiB, {store!r}>"

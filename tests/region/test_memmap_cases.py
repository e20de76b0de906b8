"""What programs do with numpy.memmap, done with numpy.frombuffer over a region."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import umappy
from umappy.stores import FileStore

MapStore = Callable[..., umappy.Region]

SHAPE = (3, 4)
EXPECTED = np.arange(12, dtype=np.float32).reshape(SHAPE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    EXPECTED.tofile(path)
    return path


@pytest.fixture
def region(map_store: MapStore, path: Path) -> umappy.Region:
    return map_store(path, mode="r+")


def as_array(region: umappy.Region) -> NDArray[np.float32]:
    return np.frombuffer(region, np.float32).reshape(SHAPE)


def test_written_file_reads_back_in_another_mapping(map_store: MapStore, tmp_path: Path) -> None:
    region = map_store(tmp_path / "new", EXPECTED.nbytes, mode="w+")
    np.frombuffer(region, np.float32)[:] = EXPECTED.ravel()
    region.close()
    assert (as_array(map_store(tmp_path / "new")) == EXPECTED).all()


def test_read_gives_the_file(region: umappy.Region) -> None:
    array = as_array(region)
    assert (array == EXPECTED).all()
    assert array.dtype == np.float32


def test_shape_and_strides_are_those_of_an_array(region: umappy.Region) -> None:
    array = as_array(region)
    assert (array.shape, array.strides) == (EXPECTED.shape, EXPECTED.strides)
    assert array.flags.c_contiguous
    assert not array.flags.owndata


def test_fortran_order_maps_without_a_copy(map_store: MapStore, path: Path) -> None:
    region = map_store(path)
    array = np.ndarray(SHAPE, np.float32, region, order="F")
    expected = np.fromfile(path, np.float32).reshape(SHAPE[::-1]).T
    assert (array == expected).all()
    assert array.flags.f_contiguous


def test_base_leads_to_the_region(map_store: MapStore, path: Path) -> None:
    region = map_store(path)
    array = np.frombuffer(region, np.float32)[2:5]
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert getattr(owner, "obj", owner) is region


def test_offset_maps_from_there(map_store: MapStore, path: Path) -> None:
    region = map_store(FileStore(path, offset=EXPECTED.itemsize * 5))
    array = np.frombuffer(region, np.float32)
    assert (array == EXPECTED.ravel()[5:]).all()


def test_offset_beyond_a_page_maps_from_there(map_store: MapStore, tmp_path: Path) -> None:
    np.arange(100_000).tofile(tmp_path / "long")
    for offset in (8, 4096, 4104, 65536, 799_992):
        region = map_store(FileStore(tmp_path / "long", offset=offset))
        assert np.frombuffer(region, np.int64)[0] == offset // 8


def test_view_shares_the_region_s_memory(region: umappy.Region) -> None:
    array = as_array(region)
    view = array[1:, ::2]
    view[:] = -1
    assert (array[1:, ::2] == -1).all()
    assert np.shares_memory(array, view)


def test_arithmetic_gives_an_ordinary_array(region: umappy.Region) -> None:
    array = as_array(region)
    total = array + 10
    assert total.base is None
    assert (total == EXPECTED + 10).all()


def test_arithmetic_with_out_writes_into_the_region(region: umappy.Region) -> None:
    array = as_array(region)
    result = np.multiply(array, 2, out=array)
    assert result is array
    assert (array == EXPECTED * 2).all()


def test_reductions_give_numbers(region: umappy.Region) -> None:
    array = as_array(region)
    assert array.sum() == EXPECTED.sum()
    assert (array.sum(axis=0) == EXPECTED.sum(axis=0)).all()
    assert array.max() == 11
    assert isinstance(array.sum(), np.float32)


def test_fancy_index_copies(region: umappy.Region) -> None:
    array = as_array(region)
    chosen = array[[0, 2]]
    assert not np.shares_memory(chosen, array)
    chosen[:] = 99
    assert (array == EXPECTED).all()


def test_take_and_choose_give_elements(region: umappy.Region) -> None:
    array = as_array(region)
    assert (array.take([1, 11, 5]) == [1, 11, 5]).all()
    assert (np.where(array > 5, array, 0) == np.where(EXPECTED > 5, EXPECTED, 0)).all()


def test_flush_makes_writes_visible_to_others(region: umappy.Region, path: Path) -> None:
    array = as_array(region)
    array[0, 0] = 77
    region.flush()
    assert np.fromfile(path, np.float32)[0] == 77


def test_garbage_array_has_written_its_file(path: Path, make_pager: Callable[..., umappy.Pager]) -> None:
    pager = make_pager()
    array = np.frombuffer(umappy.umap(path, mode="r+", page_size=4096, pager=pager), np.float32)
    array[5] = 55
    del array
    gc.collect()
    assert np.fromfile(path, np.float32)[5] == 55


def test_other_dtypes_and_byte_orders_view_the_same_bytes(map_store: MapStore, path: Path) -> None:
    region = map_store(path, mode="r+")
    for dtype in (np.uint8, np.int16, ">f4", "<i8", "S4", "V6", np.complex64):
        mapped = np.frombuffer(region, dtype)
        assert mapped.tobytes() == EXPECTED.tobytes()


def test_structured_arrays_read_and_write_fields(map_store: MapStore, tmp_path: Path) -> None:
    dtype = np.dtype([("id", "<i4"), ("value", "<f8"), ("name", "S6")])
    records = np.array([(i, i / 3, f"n{i}") for i in range(1000)], dtype)
    records.tofile(tmp_path / "records")
    region = map_store(tmp_path / "records", mode="r+")
    mapped = np.frombuffer(region, dtype)
    mapped["value"] *= 2
    records["value"] *= 2
    assert (mapped == records).all()
    del mapped
    region.close()
    assert (np.fromfile(tmp_path / "records", dtype) == records).all()


def test_unaligned_elements_read_and_write(map_store: MapStore, tmp_path: Path) -> None:
    """Every 512th element of 8 bytes lies across the end of a page."""
    (tmp_path / "odd").write_bytes(b"x" + np.arange(5000).tobytes())
    region = map_store(tmp_path / "odd", mode="r+")
    mapped = np.frombuffer(region, np.int64, offset=1)
    mapped += 1
    assert (mapped == np.arange(1, 5001)).all()


def test_size_that_no_elements_fill_raises(map_store: MapStore, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(10))
    with pytest.raises(ValueError, match="multiple of element size"):
        np.frombuffer(map_store(tmp_path / "odd"), np.int64)


def test_save_and_load_through_a_region_keep_the_array(map_store: MapStore, tmp_path: Path) -> None:
    """numpy's own file format, whose data begin at byte 128."""
    np.save(tmp_path / "a.npy", EXPECTED)
    region = map_store(FileStore(tmp_path / "a.npy", offset=128))
    loaded = np.frombuffer(region, np.float32).reshape(SHAPE)
    assert (loaded == EXPECTED).all()

"""save and load: .npy and .npy.zst, against numpy and the zstd tool."""

import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy import errors
from umappy.array import region_of
from umappy.stores import ErrorStore, FileStore, ZstdStore
from zst_files import decode_by_tool, make_data, run_tool

RECORDS = np.dtype([("key", "S3"), ("value", ">f8"), ("more", "i2", (2, 2))])
ARRAYS = {
    "one dimension": np.arange(300_000, dtype=np.int32),
    "two dimensions": np.arange(90_000.0).reshape(300, 300),
    "fortran": np.asfortranarray(np.arange(90_000.0).reshape(100, 900)),
    "strided": np.arange(500_000)[::-3],
    "transposed and cut": np.arange(60_000).reshape(20, 30, 100).transpose(2, 0, 1)[5:],
    "broadcast": np.broadcast_to(np.arange(1000.0), (200, 1000)),
    "big-endian": np.arange(1000, dtype=">u4"),
    "records": np.frombuffer(make_data(RECORDS.itemsize * 2000), RECORDS),
    "bools": np.arange(5000) % 3 == 0,
    "complex": np.arange(1000) * 1j,
    "dates": np.arange("2000-01-01", "2010-01-01", dtype="datetime64[D]"),
    "text": np.array(["a", "ü☃", ""] * 100),
    "no dimension": np.array(5.5),
    "nothing": np.zeros((0, 3)),
    "empty items": np.zeros(7, "S0"),
}


@pytest.fixture(params=[".npy", ".npy.zst"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"x{request.param}"


@pytest.fixture(params=ARRAYS.values(), ids=ARRAYS.keys())
def array(request: pytest.FixtureRequest) -> np.ndarray:
    return request.param


@pytest.fixture
def pager() -> Iterator[umappy.Pager]:
    with umappy.Pager("6MiB", fillers=2, evictors=1) as pager:
        yield pager


def read_npy(path: Path) -> bytes:
    return decode_by_tool(path) if path.suffix == ".zst" else path.read_bytes()


def test_saved_array_is_what_numpy_loads(path: Path, array: np.ndarray) -> None:
    umappy.save(path, array)
    again = np.load(io.BytesIO(read_npy(path)))
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


def test_saved_array_is_loaded_again(path: Path, array: np.ndarray, pager: umappy.Pager) -> None:
    umappy.save(path, array)
    again = umappy.load(path, pager=pager)
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()
    assert not again.flags.writeable


def test_array_that_numpy_saved_is_loaded(path: Path, array: np.ndarray, pager: umappy.Pager) -> None:
    plain = path.with_name("plain.npy")
    np.save(plain, array)
    if path.suffix == ".zst":
        run_tool("zstd", "-q", plain, "-o", path)
    else:
        plain.rename(path)
    again = umappy.load(path, pager=pager)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()


def test_array_loaded_for_writing_is_written_to_the_file(path: Path, pager: umappy.Pager) -> None:
    values = np.arange(1_000_000)
    umappy.save(path, values)
    array = umappy.load(path, "r+", pager=pager)
    array[::1000] *= -1
    region_of(array)[0].flush()
    values[::1000] *= -1
    again = umappy.load(path, pager=pager)
    assert (again == values).all()


def test_array_that_the_tool_compressed_is_loaded_for_writing(tmp_path: Path, pager: umappy.Pager) -> None:
    np.save(tmp_path / "x.npy", np.arange(100_000))
    run_tool("zstd", "-q", tmp_path / "x.npy")
    array = umappy.load(tmp_path / "x.npy.zst", "r+", pager=pager)
    array[5] = -1
    del array
    again = umappy.load(tmp_path / "x.npy.zst", pager=pager)
    assert again[5] == -1
    assert (again[6:] == np.arange(6, 100_000)).all()


def test_compressed_array_that_is_written_decodes_as_it_was_saved(tmp_path: Path, pager: umappy.Pager) -> None:
    path = tmp_path / "x.npy.zst"
    umappy.save(path, np.arange(1000))
    array = umappy.load(path, "r+", pager=pager)
    array[:] = 0
    del array
    assert (np.load(io.BytesIO(decode_by_tool(path))) == np.arange(1000)).all()
    with ZstdStore(path) as store:
        assert not store.packed


def test_saved_compressed_file_is_packed_and_takes_its_options(tmp_path: Path) -> None:
    path = tmp_path / "x.npy.zst"
    umappy.save(path, np.arange(100_000), level=-3, page_size="4KiB")
    with ZstdStore(path) as store:
        assert store.packed
        assert store.page_size == 4096
        assert store.info().level == -3


def test_array_keeps_its_region_open(path: Path, pager: umappy.Pager) -> None:
    umappy.save(path, np.arange(100_000))
    part = umappy.load(path, pager=pager)[5000:6000]
    assert (part == np.arange(5000, 6000)).all()
    region, offset = region_of(part)
    assert offset % 8 == 0
    assert pager.stats().regions == 1
    with pytest.raises(BufferError):
        region.close()
    del part, region
    assert pager.stats().regions == 0


def test_data_behind_a_long_header_is_mapped_from_its_page(tmp_path: Path, pager: umappy.Pager) -> None:
    fields = np.dtype([(f"field_{i}", "f4") for i in range(900)])
    values = np.frombuffer(make_data(fields.itemsize * 50), fields)
    for suffix in (".npy", ".npy.zst"):
        path = tmp_path / f"x{suffix}"
        umappy.save(path, values)
        array = umappy.load(path, pager=pager)
        assert array.tobytes() == values.tobytes()
        del array


def test_array_larger_than_memory_is_saved_from_its_region(path: Path, tmp_path: Path, pager: umappy.Pager) -> None:
    source = tmp_path / "source"
    values = np.frombuffer(make_data(20 << 20), np.uint16)
    values.tofile(source)
    with umappy.umap(source, pager=pager) as region:
        array = np.frombuffer(region, np.uint16)
        umappy.save(path, array)
        del array
    assert (np.load(io.BytesIO(read_npy(path))) == values).all()


def test_save_of_what_cannot_be_read_raises_and_leaves_what_was_there(path: Path, tmp_path: Path) -> None:
    umappy.save(path, np.arange(5))
    before = path.read_bytes()
    (tmp_path / "source").write_bytes(bytes(1 << 20))
    store = ErrorStore(FileStore(tmp_path / "source"), op="read", offset=500_000, size=1)
    with umappy.Pager("6MiB", fillers=2, evictors=1, timeout_seconds=0.5) as pager:
        region = umappy.umap(store, pager=pager)
        array = np.frombuffer(region, np.uint8)
        with pytest.raises(errors.StoreError):
            umappy.save(path, array)
        del array
        region.close()
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted(["source", path.name])


def test_save_replaces_and_keeps_permissions_and_links(path: Path, tmp_path: Path) -> None:
    umappy.save(path, np.arange(5))
    if path.suffix == ".npy":
        path.chmod(0o640)
    link = tmp_path / f"link{''.join(path.suffixes)}"
    link.symlink_to(path)
    umappy.save(link, np.arange(6))
    assert link.is_symlink()
    assert len(umappy.load(path)) == 6
    if path.suffix == ".npy":
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_save_onto_the_file_an_array_is_mapped_from(path: Path, pager: umappy.Pager) -> None:
    umappy.save(path, np.arange(100_000))
    umappy.save(path, umappy.load(path, pager=pager)[::2])
    assert (umappy.load(path, pager=pager) == np.arange(0, 100_000, 2)).all()


def test_save_that_is_killed_leaves_what_was_there(path: Path) -> None:
    umappy.save(path, np.arange(5))
    before = path.read_bytes()
    code = f"""
import os, numpy as np, umappy
import sys
module = sys.modules["umappy.save"]
def kill(array, inner=module._list_blocks):
    yield next(inner(array))
    os._exit(9)
module._list_blocks = kill
umappy.save({str(path)!r}, np.arange(1_000_000))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 9
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["x", "x.zst", "x.npz", "x.npy.gz"])
def test_save_to_another_suffix_raises(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.npy\.zst"):
        umappy.save(tmp_path / name, np.arange(5))
    assert os.listdir(tmp_path) == []


def test_python_objects_raise(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="objects"):
        umappy.save(path, np.array([None]))
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="objects"):
        umappy.load(tmp_path / "objects.npy")


def test_load_of_a_short_file_names_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(1000))
    os.truncate(path, 5000)
    with pytest.raises(ValueError, match=r"5000.*8128"):
        umappy.load(path)


def make_npy(text: bytes, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"text",
        b"\x93NUMPY",
        make_npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"\7\0"),
        make_npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"),
        make_npy(b"{'descr': '<f8', 'fortran_order': 5, 'shape': (0,)}"),
        make_npy(b"{'descr': 'what', 'fortran_order': False, 'shape': (0,)}"),
        make_npy(b"{'descr': '<f8', 'shape': (0,)}"),
        make_npy(b"__import__('os')"),
        make_npy(b"(" * 5000),
        b"\x93NUMPY\2\0\xff\xff\xff\x7f{}",
    ],
)
def test_load_of_no_npy_raises_and_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy"):
        umappy.load(path)


@pytest.mark.parametrize("mode", ["w+", "x", "c", "q"])
def test_load_in_a_mode_that_creates_raises(path: Path, mode: str) -> None:
    umappy.save(path, np.arange(5))
    with pytest.raises(ValueError, match=r"umappy\.save"):
        umappy.load(path, mode)
    assert len(umappy.load(path)) == 5


def test_load_of_a_missing_file_raises(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        umappy.load(path)


def test_dictionary_for_a_plain_file_raises(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(5))
    with pytest.raises(ValueError, match="dictionary"):
        umappy.load(tmp_path / "x.npy", dictionary=b"12345678")

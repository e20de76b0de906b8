"""Reading and writing a region in every way that Python and numpy have, far larger than its memory.

One filler and the smallest budget: whatever a single thread can wait for, it must not wait for itself.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import umappy
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]

KIB, MIB = 1 << 10, 1 << 20
# Page sizes, each with a file several times its pager's memory, of which the last page is not whole.
SHAPES = [(4 * KIB, MIB + 1), (64 * KIB, 5 * MIB - 4097), (MIB, 40 * MIB + 8), (2 * MIB, 80 * MIB - 1)]
SMALL = SHAPES[:2]


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0] // KIB}KiB")
def region(request: pytest.FixtureRequest, map_store: MapStore, make_file: MakeFile) -> umappy.Region:
    page_size, size = request.param
    return map_store(make_file(size), page_size=page_size, mode="r+")


@pytest.fixture
def data(region: umappy.Region) -> bytes:
    return make_bytes(1, len(region))


@pytest.fixture
def small(map_store: MapStore, make_file: MakeFile) -> umappy.Region:
    """1 MiB in pages of 4 KiB."""
    return map_store(make_file(MIB), mode="r+")


@pytest.fixture
def expected() -> NDArray[np.int64]:
    """What `small` holds, in ordinary memory."""
    return np.frombuffer(make_bytes(1, MIB), np.int64).copy()


@pytest.mark.parametrize(("page_size", "size"), SMALL)
def test_read_one_byte_at_a_time_gives_the_file(
    map_store: MapStore, make_file: MakeFile, page_size: int, size: int
) -> None:
    region = map_store(make_file(size), page_size=page_size)
    assert bytes(region[i] for i in range(size)) == make_bytes(1, size)


def test_read_one_byte_at_a_time_backwards_gives_the_file(small: umappy.Region) -> None:
    assert bytes(small[-i] for i in range(1, MIB + 1)) == make_bytes(1, MIB)[::-1]


def test_write_one_byte_at_a_time_reaches_the_file(small: umappy.Region) -> None:
    new = make_bytes(2, MIB)
    for i in range(MIB):
        small[i] = new[i]
    assert small[:] == new
    small.flush()
    assert Path(small.store.path).read_bytes() == new


def test_read_scattered_bytes_gives_the_file(region: umappy.Region, data: bytes) -> None:
    places = np.random.default_rng(3).integers(0, len(data), 300).tolist()
    assert [region[i] for i in places] == [data[i] for i in places]


def test_write_scattered_bytes_reaches_the_file_and_changes_nothing_else(region: umappy.Region, data: bytes) -> None:
    wanted = bytearray(data)
    for i in np.random.default_rng(4).integers(0, len(data), 300).tolist():
        wanted[i] ^= 0xFF
        region[i] ^= 0xFF
    region.close()
    assert Path(region.store.path).read_bytes() == wanted


def test_slice_across_pages_gives_the_bytes(region: umappy.Region, data: bytes) -> None:
    page = region.page_size
    for start, stop in [(0, 1), (page - 1, page + 1), (3 * page - 5, 6 * page + 5), (len(data) - page - 3, len(data))]:
        assert region[start:stop] == data[start:stop]


def test_slice_of_everything_gives_the_file(region: umappy.Region, data: bytes) -> None:
    assert region[:] == data


def test_slice_with_step_gives_the_bytes(small: umappy.Region) -> None:
    data = make_bytes(1, MIB)
    for step in (2, 4095, 4097, -1, -4097):
        assert small[::step] == data[::step]


def test_assigned_slices_reach_the_file(region: umappy.Region, data: bytes) -> None:
    page, wanted = region.page_size, bytearray(data)
    for start, stop in [(0, 3), (page - 2, page + 2), (4 * page + 1, 7 * page - 1), (len(data) - 5, len(data))]:
        wanted[start:stop] = region[start:stop] = b"\xa5" * (stop - start)
    region.close()
    assert Path(region.store.path).read_bytes() == wanted


def test_memoryview_tobytes_gives_the_file(region: umappy.Region, data: bytes) -> None:
    with memoryview(region) as view:
        assert bytes(view) == data
        assert view[::-1].tobytes() == data[::-1]


def test_memoryview_copied_onto_itself_shifts_the_bytes(small: umappy.Region) -> None:
    with memoryview(small) as view:
        view[1:] = view[:-1]
    assert small[:] == make_bytes(1, MIB)[:1] + make_bytes(1, MIB)[:-1]


def test_search_for_bytes_of_the_end_finds_them(region: umappy.Region, data: bytes) -> None:
    assert region.find(data[-40:]) == len(data) - 40
    assert region.rfind(data[:40]) == 0


def test_array_fancy_index_gives_the_elements(small: umappy.Region, expected: NDArray[np.int64]) -> None:
    numbers = np.frombuffer(small, np.int64)
    places = np.random.default_rng(5).integers(0, len(expected), 10_000)
    assert (numbers[places] == expected[places]).all()
    assert (numbers[expected > 0] == expected[expected > 0]).all()


def test_array_fancy_assignment_writes_the_elements(small: umappy.Region, expected: NDArray[np.int64]) -> None:
    numbers = np.frombuffer(small, np.int64)
    places = np.random.default_rng(6).integers(0, len(expected), 10_000)
    numbers[places] = expected[places] = places
    numbers[expected < 0] = expected[expected < 0] = 7
    assert (numbers == expected).all()


def test_array_repr_and_str_show_both_ends(small: umappy.Region, expected: NDArray[np.int64]) -> None:
    numbers = np.frombuffer(small, np.int64)
    assert repr(numbers) == repr(expected)
    assert str(numbers) == str(expected)


def test_array_tolist_gives_the_elements(small: umappy.Region, expected: NDArray[np.int64]) -> None:
    numbers = np.frombuffer(small, np.int64)
    assert numbers.tolist() == expected.tolist()


def test_array_in_place_ufuncs_change_the_elements(small: umappy.Region, expected: NDArray[np.int64]) -> None:
    numbers = np.frombuffer(small, np.int64)
    for array in (numbers, expected):
        array += 3
        array[1:] ^= array[:-1].copy()
        np.multiply(array[::-1], 5, out=array)
        np.add.at(array, [0, 0, -1], 1)
    assert (numbers == expected).all()


def test_array_ufunc_of_both_halves_writes_into_a_third(small: umappy.Region, expected: NDArray[np.int64]) -> None:
    """Three pages are needed at once, in every step."""
    numbers = np.frombuffer(small, np.int64)
    third = len(expected) // 3
    for array in (numbers, expected):
        np.add(array[:third], array[third : 2 * third], out=array[2 * third : 3 * third])
    assert (numbers == expected).all()


@pytest.mark.parametrize("kind", ["quicksort", "stable", "heapsort"])
def test_array_sort_in_place_sorts_the_file(small: umappy.Region, expected: NDArray[np.int64], kind: str) -> None:
    np.frombuffer(small, np.int64).sort(kind=kind)  # type: ignore[call-overload]
    small.flush()
    assert (np.fromfile(small.store.path, np.int64) == np.sort(expected)).all()


def test_array_of_records_sorts_by_a_field(map_store: MapStore, make_file: MakeFile) -> None:
    """100-byte records: most of them lie in one page, some across two."""
    records = np.dtype([("key", "S10"), ("rest", "V90")])
    expected = np.frombuffer(make_bytes(1, 4000 * 100), records).copy()
    region = map_store(make_file(4000 * 100), mode="r+")
    np.frombuffer(region, records).sort(order="key")
    expected.sort(order="key")
    assert region[:] == expected.tobytes()


def test_array_reductions_and_products_equal_those_in_memory(map_store: MapStore, tmp_path: Path) -> None:
    matrix = np.random.default_rng(7).normal(size=(200, 200))
    matrix.tofile(tmp_path / "x")
    mapped = np.frombuffer(map_store(tmp_path / "x", page_size=4096)).reshape(200, 200)
    assert mapped.sum() == matrix.sum()
    assert (mapped.argsort(axis=0) == matrix.argsort(axis=0)).all()
    np.testing.assert_allclose(mapped @ mapped.T, matrix @ matrix.T)


def test_array_of_objects_pickled_by_value_equals_it(small: umappy.Region, expected: NDArray[np.int64]) -> None:
    numbers = np.frombuffer(small, np.int64)
    assert (pickle.loads(pickle.dumps(numbers)) == expected).all()


def test_pages_of_64_mib_read_and_write(
    map_store: MapStore, make_pager: Callable[..., umappy.Pager], tmp_path: Path
) -> None:
    """Sparse: the bytes at stake lie at the ends of pages, the last of which is 100 bytes long."""
    page = 64 * MIB
    size = 2 * page + 100
    with umappy.FileStore(tmp_path / "x", "x", size=size) as store:
        store.write(page - 2, b"abcd")
    pager = make_pager(page, fillers=1)
    region = map_store(tmp_path / "x", page_size=page, mode="r+", pager=pager)
    assert region[page - 3 : page + 3] == b"\0abcd\0"
    region[2 * page + 99] = 9
    region[2 * page - 1] = 8
    assert region[2 * page - 1 :] == b"\x08" + bytes(99) + b"\x09"
    region.close()
    assert store.size == (tmp_path / "x").stat().st_size
    assert pager.stats().fills == 3
    with (tmp_path / "x").open("rb") as file:
        file.seek(page - 3)
        assert file.read(6) == b"\0abcd\0"
        file.seek(2 * page - 1)
        assert file.read() == b"\x08" + bytes(99) + b"\x09"


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 8191, 65535, 65537])
@pytest.mark.parametrize("page_size", [4 * KIB, 64 * KIB])
def test_size_off_the_page_reads_writes_and_stays(
    map_store: MapStore, make_file: MakeFile, page_size: int, size: int
) -> None:
    path = make_file(size)
    region = map_store(path, page_size=page_size, mode="r+")
    assert len(region) == region.size() == size
    assert region[:] == make_bytes(1, size)
    region[-1] ^= 1
    wanted = region[:]
    region.close()
    assert path.read_bytes() == wanted


def test_size_below_the_store_s_maps_only_that(map_store: MapStore, make_file: MakeFile) -> None:
    path = make_file(10_000)
    region = map_store(path, 5000, mode="r+")
    region[:] = bytes(5000)
    with pytest.raises(IndexError):
        region[5000]
    region.close()
    assert path.read_bytes() == bytes(5000) + make_bytes(1, 10_000)[5000:]


def test_offset_in_the_store_shifts_the_bytes(map_store: MapStore, make_file: MakeFile) -> None:
    path = make_file(50_000)
    region = map_store(umappy.FileStore(path, "r+", offset=128))
    assert region[:] == make_bytes(1, 50_000)[128:]
    region[0] ^= 1
    region.close()
    before = make_bytes(1, 50_000)
    assert path.read_bytes() == before[:128] + bytes([before[128] ^ 1]) + before[129:]


def test_region_of_8_tib_maps_at_once_and_holds_scattered_bytes(map_store: MapStore, tmp_path: Path) -> None:
    size = 8 << 40
    region = map_store(tmp_path / "x", size, mode="x", page_size=4096)
    places = range(0, size, size // 50)
    for i, place in enumerate(places):
        region[place] = i
    assert [region[place] for place in places] == list(range(len(places)))
    assert region[size - 1] == 0

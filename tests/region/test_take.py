"""`umappy.take`: equal to np.take for every array and index, whatever the budget; by reads that go on at once."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

import umappy
from umappy import Residency, StoreError
from umappy.stores import DelayStore, ErrorStore, FileStore, LogStore
from umappy.stores.testing import make_bytes

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]

PAGE = 4096
SIZE = 1 << 20
"""Five times the budget of `region`."""


@pytest.fixture(scope="module")
def whole() -> NDArray[np.uint8]:
    return np.frombuffer(make_bytes(1, SIZE), np.uint8)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[umappy.Region]:
    """One for all examples: nothing writes to it. Its pager has the smallest budget."""
    path = tmp_path_factory.mktemp("take") / "data"
    path.write_bytes(make_bytes(1, SIZE))
    memory = umappy._engine.lib.um_pager_memory_min(PAGE, 2, 1)
    with (
        umappy.Pager(memory, fillers=2, evictors=1, timeout_seconds=5.0) as pager,
        umappy.umap(path, page_size=PAGE, pager=pager) as region,
    ):
        yield region
        gc.collect()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[memoryview]:
    """The same bytes, in a region of more than twice its budget: what is taken of it is gathered past memory."""
    path = tmp_path_factory.mktemp("take") / "sparse"
    with path.open("wb") as file:
        file.seek(100 << 20)
        file.write(make_bytes(1, SIZE))
        file.truncate(160 << 20)
    with (
        umappy.Pager("64MiB", fillers=2) as pager,
        umappy.umap(path, pager=pager) as region,
        memoryview(region) as everything,
        everything[100 << 20 : (100 << 20) + SIZE] as part,
    ):
        yield part
        gc.collect()


def check_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.tobytes()


@st.composite
def layouts(draw: st.DrawFn) -> Callable[[Any], NDArray[Any]]:
    """A view that is made alike of the region and of the same bytes in memory."""
    dtype = np.dtype(draw(st.sampled_from(["u1", "<i8", ">i4", "c16", "S3", [("a", "u1"), ("b", "<u4")], "V5000"])))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=40))
    count = int(np.prod(shape))
    if count * dtype.itemsize > SIZE:
        dtype, shape, count = np.dtype("u1"), (8, 64), 512
    offset = draw(st.integers(0, SIZE - count * dtype.itemsize))
    order = draw(st.sampled_from(["C", "F"]))
    key = draw(npst.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)) if shape else ()
    axes_seed = draw(st.integers(0, 1000))

    def view(buffer: Any) -> NDArray[Any]:
        flat = np.frombuffer(buffer, dtype, count, offset)
        part = np.asarray(flat.reshape(shape, order=order)[key])
        return part.transpose(np.random.default_rng(axes_seed).permutation(part.ndim))

    return view


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_take_of_any_view_is_what_numpy_takes(region: umappy.Region, whole: NDArray[np.uint8], data: Any) -> None:
    check_any_view(region, whole, data)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_gather_of_any_view_is_what_numpy_takes(window: memoryview, whole: NDArray[np.uint8], data: Any) -> None:
    check_any_view(window, whole, data)


def check_any_view(region: umappy.Region | memoryview, whole: NDArray[np.uint8], data: Any) -> None:
    view = data.draw(layouts())
    a, wanted_of = view(region), view(whole)
    axis = data.draw(st.none() | st.integers(-a.ndim, a.ndim - 1)) if a.ndim else None
    length = a.size if axis is None else a.shape[axis]
    mode = data.draw(st.sampled_from(["raise", "wrap", "clip"]))
    reach = length if mode == "raise" else 3 * length + 1
    bounds = st.integers(-reach, max(-reach, reach - 1)) if length else st.nothing()
    shapes = npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=9) if length else st.just((0,))
    indices = data.draw(npst.arrays(np.int64, shapes, elements=bounds))
    check_same(umappy.take(a, indices, axis=axis, mode=mode), np.take(wanted_of, indices, axis=axis, mode=mode))


def numbers_of(region: umappy.Region) -> NDArray[np.int64]:
    """No fixture: pytest would hold the array until after the region's end."""
    return np.frombuffer(region, np.int64)


def copy_of(a: NDArray[Any], whole: NDArray[np.uint8]) -> NDArray[Any]:
    return whole.view(a.dtype).reshape(a.shape)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("shape", [(64, 32, 64), (2, 256, 256), (512, 2, 128), (131072, 1, 1), (1, 2, 65536)])
def test_take_of_far_more_than_the_budget_is_what_numpy_takes(
    region: umappy.Region, whole: NDArray[np.uint8], shape: tuple[int, ...], axis: int | None
) -> None:
    a, b = np.frombuffer(region, np.int64).reshape(shape), whole.view(np.int64).reshape(shape)
    length = a.size if axis is None else a.shape[axis]
    indices = np.random.default_rng(1).integers(-length, length, min(3000, 2 * length))
    check_same(umappy.take(a, indices, axis), np.take(b, indices, axis))
    turned = None if axis is None else -1 - axis
    check_same(umappy.take(a.T, indices[::-1], turned), np.take(b.T, indices[::-1], turned))


def test_rows_larger_than_the_budget_are_taken_piece_by_piece(region: umappy.Region, whole: NDArray[np.uint8]) -> None:
    rows = np.frombuffer(region, np.uint8).reshape(2, -1)
    check_same(umappy.take(rows, [1, 0, 1], axis=0), np.take(whole.reshape(2, -1), [1, 0, 1], axis=0))


def test_elements_larger_than_the_budget_are_taken(region: umappy.Region, whole: NDArray[np.uint8]) -> None:
    check_same(umappy.take(np.frombuffer(region, "V262144"), [3, 1]), np.take(whole.view("V262144"), [3, 1]))


def test_every_index_many_times_is_taken(
    region: umappy.Region, whole: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = numbers_of(region)
    monkeypatch.setattr(sys.modules["umappy.take"], "ITEMS_MAX", 1000)
    indices = np.random.default_rng(2).integers(0, 512, 30_000)
    check_same(umappy.take(numbers, indices), np.take(copy_of(numbers, whole), indices))
    matrix = numbers.reshape(256, 512)
    check_same(umappy.take(matrix.T, indices, axis=0), np.take(copy_of(matrix, whole).T, indices, axis=0))


@pytest.mark.parametrize("indices", [[], True, [1.0], np.uint64(3), 5, np.array([[1, 2]], ">i2"), np.array([], bool)])
def test_indices_of_other_kinds_mean_what_they_mean_to_numpy(
    region: umappy.Region, whole: NDArray[np.uint8], indices: Any
) -> None:
    numbers = numbers_of(region)
    check_same(umappy.take(numbers, indices), np.take(copy_of(numbers, whole), indices))


@pytest.mark.parametrize(
    "arguments",
    [
        {"indices": 1 << 17},
        {"indices": [0, -(1 << 17) - 1]},
        {"indices": [0], "axis": 1},
        {"indices": [0], "axis": -2},
        {"indices": [0], "axis": 0.5},
        {"indices": [0], "axis": True},
        {"indices": [0], "mode": "around"},
        {"indices": np.array([1.0])},
        {"indices": "x"},
        {"indices": None},
        {"indices": [0], "out": [1]},
        {"indices": [0], "out": np.zeros(2, np.int64)},
        {"indices": [0], "out": np.zeros(1)},
        {"indices": [0], "out": np.frombuffer(bytes(8), np.int64)},
    ],
    ids=str,
)
def test_what_numpy_refuses_is_refused_with_its_class_of_error(
    region: umappy.Region, whole: NDArray[np.uint8], arguments: dict[str, Any]
) -> None:
    numbers = numbers_of(region)
    with pytest.raises(Exception) as wanted:  # noqa: PT011
        np.take(copy_of(numbers, whole), **arguments)
    with pytest.raises(wanted.type):
        umappy.take(numbers, **arguments)


def test_index_out_of_bounds_names_it_and_what_takes_any(region: umappy.Region) -> None:
    numbers = numbers_of(region)
    with pytest.raises(IndexError, match=r"index 131072 is out of bounds for axis 0 with size 131072; mode='wrap'"):
        umappy.take(numbers, [5, 131072, 999999])


def test_caller_s_indices_are_left_alone(region: umappy.Region) -> None:
    numbers = numbers_of(region)
    indices = np.array([-1, 5, -3])
    umappy.take(numbers, indices)
    assert indices.tolist() == [-1, 5, -3]


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 3), np.int64),
        np.empty((2, 3), np.int64, order="F"),
        np.empty((4, 6), np.int64)[::2, ::2],
        np.empty((2, 3), np.int32),
        np.empty((2, 3), ">i8"),
    ],
    ids=["C", "F", "strided", "narrow", "swapped"],
)
def test_out_gets_the_result_and_is_returned(
    region: umappy.Region, whole: NDArray[np.uint8], out: NDArray[Any]
) -> None:
    numbers = numbers_of(region)
    indices = [[3, 70_000, -1], [9, 3, 1]]
    wanted = np.take(copy_of(numbers, whole), indices, out=np.empty_like(out))
    assert umappy.take(numbers, indices, out=out) is out
    assert out.tolist() == wanted.tolist()


def test_out_over_the_array_itself_is_as_if_it_were_not(map_store: MapStore, make_file: MakeFile) -> None:
    region = map_store(make_file(SIZE), mode="r+")
    a = np.frombuffer(region, np.int64)
    before = np.frombuffer(make_bytes(1, SIZE), np.int64)
    order = np.random.default_rng(3).permutation(a.size)
    umappy.take(a, order, out=a)
    assert (a == before[order]).all()


def test_take_from_what_lies_in_no_region_is_numpy_s() -> None:
    assert umappy.take([1, 2, 3], [2, 0]).tolist() == [3, 1]
    assert umappy.take(np.arange(6).reshape(2, 3), [1], axis=1).tolist() == [[1], [4]]
    masked = umappy.take(np.ma.masked_equal([1, 2, 3], 2), [1, 2])
    assert masked.mask.tolist() == [True, False]


def test_subclass_of_ndarray_is_kept(region: umappy.Region) -> None:
    numbers = numbers_of(region)

    class Kind(np.ndarray[Any, Any]):
        pass

    assert type(umappy.take(numbers.view(Kind), [1, 2])) is Kind


def test_take_of_dirty_pages_shows_what_was_written(map_store: MapStore, make_file: MakeFile) -> None:
    a = np.frombuffer(map_store(make_file(SIZE), mode="r+"), np.int64)
    places = np.random.default_rng(4).permutation(a.size)[:2000]
    for place in places:
        a[place] = place
    assert (umappy.take(a, places) == places).all()


def test_take_reads_each_page_once_and_waits_for_no_fault(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    log = LogStore(FileStore(make_file(SIZE)))
    region = map_store(log, pager=make_pager(memory=4 << 20, fillers=4))
    a = np.frombuffer(region, np.int64)
    log.take()
    indices = np.random.default_rng(5).permutation(256)[:50] * 512 + 7
    umappy.take(a, np.concatenate((indices, indices + 100)))
    pages = {page for call in log.take() for page in range(call.offset // PAGE, (call.offset + call.size) // PAGE)}
    assert pages >= set((indices // 512).tolist())
    stats = region.stats()
    assert (stats.read_faults, stats.bytes_read) == (0, len(pages) * PAGE)


def test_sparse_take_of_more_than_the_budget_leaves_pages_absent(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    path = make_file(SIZE)
    with path.open("r+b") as file:
        file.truncate(160 << 20)
    region = map_store(path, pager=make_pager(memory=64 << 20, fillers=2))
    a = np.frombuffer(region, np.int64)
    indices = np.arange(0, a.size, 4 * 512)
    assert (umappy.take(a, indices) == np.fromfile(path, np.int64)[indices]).all()
    stats = region.stats()
    assert (stats.resident, stats.read_faults, stats.prefetches) == (0, 0, 0)
    assert stats.bytes_read == indices.size * PAGE


@pytest.mark.parametrize("shift", [0, 16])
@pytest.mark.parametrize("offset", [0, 8])
def test_long_rows_are_taken_to_memory_of_any_alignment(window: memoryview, offset: int, shift: int) -> None:
    """Whole blocks come straight from the store, to a result that is aligned."""
    rows = np.frombuffer(window, np.uint8)[offset:][: 15 << 16].reshape(15, 1 << 16)
    indices = [7, 3, 3, 0, 14, 9]
    memory = np.empty((6 << 16) + 8192, np.uint8)
    begin = -memory.__array_interface__["data"][0] % 4096 + shift
    out = memory[begin : begin + (6 << 16)].reshape(6, 1 << 16)
    assert umappy.take(rows, indices, axis=0, out=out) is out
    check_same(out, np.array(rows)[indices])
    check_same(umappy.take(rows, indices, axis=0), np.array(rows)[indices])
    del rows


def test_sparse_take_while_pages_are_written_back_shows_what_was_written(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    path = make_file(SIZE)
    with path.open("r+b") as file:
        file.truncate(160 << 20)
    region = map_store(path, mode="r+", pager=make_pager(memory=64 << 20, fillers=2))
    a = np.frombuffer(region, np.int64)
    indices = np.arange(0, a.size, 8 * 512)
    for value in range(1, 5):
        a[indices[::16]] = value
        region.evict()
        taken = umappy.take(a, indices)
        assert (taken[::16] == value).all()


def test_take_of_neighbours_joins_them_into_long_reads(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    log = LogStore(FileStore(make_file(SIZE)))
    a = np.frombuffer(map_store(log, pager=make_pager(memory=8 << 20)), np.int64)
    assert umappy.take(a, np.arange(a.size)).tobytes() == make_bytes(1, SIZE)
    assert {call.size for call in log.take()} == {512 << 10}  # the staging of two workers: an eighth of the budget


@pytest.mark.parametrize("fillers", [1, 2, 8])
def test_take_with_the_smallest_budget_stays_within_it(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile, fillers: int
) -> None:
    region = map_store(make_file(8 << 20), pager=make_pager(fillers=fillers))
    a = np.frombuffer(region, np.int64)
    indices = np.random.default_rng(6).integers(0, a.size, 5000)
    assert (umappy.take(a, indices) == np.frombuffer(make_bytes(1, 8 << 20), np.int64)[indices]).all()
    stats = region.stats()
    assert stats.peak_used <= stats.memory
    assert stats.prefetches > (stats.read_faults if fillers > 1 else 0)  # one alone waits for no memory


def test_take_through_a_slow_store_reads_many_pages_at_once(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    delay = 0.002
    store = DelayStore(FileStore(make_file(4 << 20)), delay, op="read")
    region = map_store(store, pager=make_pager(memory=16 << 20, fillers=33))
    a = np.frombuffer(region, np.int64)
    indices = np.arange(0, a.size, 4 * 512)
    start = time.perf_counter()
    umappy.take(a, indices)
    assert time.perf_counter() - start < indices.size * delay / 8


def test_page_that_cannot_be_read_raises_before_take_returns(
    map_store: MapStore, make_pager: MakePager, make_file: MakeFile
) -> None:
    store = ErrorStore(FileStore(make_file(SIZE)), offset=40 * PAGE, size=1)
    region = map_store(store, pager=make_pager(memory=4 << 20, timeout_seconds=0.2))
    a = np.frombuffer(region, np.int64)
    with pytest.raises(StoreError, match=f"offset {40 * PAGE}"):
        umappy.take(a, np.arange(0, a.size, 512))
    assert region.residency()[40] == Residency.FAILED
    del a
    region.close()  # the error that was raised keeps nothing


def test_take_goes_on_after_a_close_that_failed(map_store: MapStore, make_file: MakeFile) -> None:
    region = map_store(make_file(SIZE))
    a = np.frombuffer(region, np.int64)
    with pytest.raises(BufferError):
        region.close()
    assert umappy.take(a, [1, 2]).size == 2

"""`umappy.sort` against `np.sort`: every kind of dtype, `order=`, ties, NaN and NaT, through budgets far too small."""

import tracemalloc
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.typing import NDArray

import umappy
from umappy._sort.blocks import MergedInBlocks
from umappy._sort.keys import RECORD_WORK_BYTES, RecordOrdering, make_ordering
from umappy._sort.numbers import sort_numbers

NUMBERS = [">f2", "?", "i1", "u1", "i2", ">u2", "i4", "<u4", ">i8", "u8", "f2", ">f4", "f8", "g", "F", ">c16", "G"]
TIMES = ["M8[s]", ">M8[ns]", "m8[us]"]
TEXTS = ["S1", "S4", ">U1", "S7", "S10", "S33", "U1", "U5", ">U3", "V6"]
RECORDS: list[Any] = [
    [("key", "S10"), ("value", "S90")],
    [("a", ">i4"), ("b", "f8")],
    [("flag", "?"), ("half", "f2"), ("when", "M8[s]"), ("z", "F")],
    [("long", "g"), ("complex", "G")],
    [("pair", ">i4", (2,)), ("inner", [("p", "i1"), ("q", "U2")])],
    {"names": ["x", "y"], "formats": ["u1", ">i2"], "offsets": [5, 1], "itemsize": 9},
]
# The smallest budget a pager with one filler and one evictor takes is below this.
MEMORY = 1 << 20


NO_SPACE = np.empty(0, np.uint8)


def make_values(dtype: np.dtype[Any], count: int, distinct: int, rng: np.random.Generator) -> NDArray[Any]:
    """Random elements with about `distinct` different values a field, special ones among them."""
    if dtype.names is not None:
        a = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).copy()  # padding is random too
        for name in dtype.names:
            field = dtype[name]
            columns = make_values(field.base, count * int(np.prod(field.shape)), distinct, rng)
            a[name] = columns.reshape(count, *field.shape)
        return a
    pool = np.frombuffer(rng.bytes(distinct * dtype.itemsize), f"V{dtype.itemsize}")
    values: NDArray[Any]
    if dtype.kind == "f":
        values = (rng.standard_normal(distinct) * 10).astype(dtype)
        values[: distinct // 2] = rng.choice([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0], distinct // 2)
    elif dtype.kind == "c":
        values = np.empty(distinct, dtype)
        part = np.dtype(f"f{dtype.itemsize // 2}")
        values.real = make_values(part, distinct, distinct, rng)
        values.imag = make_values(part, distinct, distinct, rng)
    elif dtype.kind == "b":
        values = rng.integers(0, 2, distinct).astype(dtype)
    elif dtype.kind == "U":
        values = rng.integers(0, 0x300, (distinct, dtype.itemsize // 4)).astype("u4").view(f"U{dtype.itemsize // 4}")
        values = values.reshape(-1).astype(dtype)
    else:
        values = pool.view(dtype).copy()
        if dtype.kind in "mM":
            values[: distinct // 4] = np.array("NaT", dtype)
    return values[rng.integers(0, distinct, count)]


def sort_by_numpy(a: NDArray[Any]) -> NDArray[Any]:
    """np.sort; float16 by way of float32, as numpy 2.4's own sort of them leaves some out of order with AVX-512."""
    return np.sort(a.astype("f4")).astype(a.dtype) if a.dtype.kind + str(a.dtype.itemsize) == "f2" else np.sort(a)


def assert_same_order(got: NDArray[Any], want: NDArray[Any]) -> None:
    """Equal but for the order of elements that compare equal."""
    assert got.dtype == want.dtype
    if got.dtype.names is not None:
        for name in got.dtype.names:
            assert_same_order(got[name], want[name])
    elif got.dtype.kind == "c":
        assert_same_order(got.real, want.real)
        assert_same_order(got.imag, want.imag)
    elif got.dtype.kind in "fmM":
        np.testing.assert_array_equal(got, want)  # NaN, NaT and zeros as numpy compares them
    else:
        assert got.tobytes() == want.tobytes()


def assert_same_elements(got: NDArray[Any], want: NDArray[Any]) -> None:
    """The same elements byte for byte, in whatever order; but numpy's SIMD sorts turn some -0.0 into 0.0 and back."""
    if got.dtype.kind in "fc":
        got, want = got + 0, want + 0
    kind = f"S{got.dtype.itemsize}"
    assert (
        np.sort(np.frombuffer(got.tobytes(), kind)).tobytes() == np.sort(np.frombuffer(want.tobytes(), kind)).tobytes()
    )


@st.composite
def arrays(draw: st.DrawFn, dtypes: list[Any]) -> NDArray[Any]:
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    size = draw(st.sampled_from([2, 3, 1000, 300_000, 1_200_000]))
    count = max(2, size // dtype.itemsize + draw(st.integers(0, 3)))
    distinct = draw(st.sampled_from([1, 3, 100, 100_000]))
    return make_values(dtype, count, distinct, np.random.default_rng(draw(st.integers(0, 1 << 30))))


def sort_in_region(pager: umappy.Pager, a: NDArray[Any], folder: Any, **options: Any) -> NDArray[Any]:
    """Sorts a copy of `a` that lies in a file, off any page boundary."""
    path = folder / "data"
    path.write_bytes(bytes(5 * a.dtype.alignment) + a.tobytes())
    with umappy.umap(path, mode="r+", pager=pager, page_size=4096) as region:
        mapped = np.frombuffer(region, a.dtype, offset=5 * a.dtype.alignment)
        assert umappy.sort(mapped, progress=False, **options) is mapped
        del mapped
    return np.frombuffer(path.read_bytes()[5 * a.dtype.alignment :], a.dtype)


@hypothesis.settings(max_examples=50)
@hypothesis.given(a=arrays(NUMBERS + TIMES + TEXTS))
def test_sort_of_any_dtype_matches_numpy(a: NDArray[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    with umappy.Pager(memory=MEMORY, fillers=2, evictors=1) as pager:
        got = sort_in_region(pager, a, tmp_path_factory.mktemp("sort"))
    want = sort_by_numpy(a)
    assert_same_order(got, want)
    if a.dtype.char not in "gG":  # numpy moves the 80 bits of a long double, not its padding
        assert_same_elements(got, want)


@hypothesis.settings(max_examples=25)
@hypothesis.given(a=arrays(RECORDS), data=st.data())
def test_sort_of_records_matches_numpy_with_and_without_order(
    a: NDArray[Any], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = list(a.dtype.names or ())
    order = data.draw(st.one_of(st.none(), st.sampled_from(names), st.permutations(names)))
    with umappy.Pager(memory=MEMORY, fillers=2, evictors=1) as pager:
        got = sort_in_region(pager, a, tmp_path_factory.mktemp("sort"), order=order)
    assert_same_order(got, np.sort(a, order=order))
    assert_same_elements(got, a)


@pytest.mark.parametrize("dtype", [[(name, name)] for name in [*NUMBERS, *TIMES, *TEXTS]], ids=lambda d: str(d[0][0]))
def test_keys_of_a_field_compare_as_numpy_compares_the_field(dtype: Any) -> None:
    a = make_values(np.dtype(dtype), 40, 40, np.random.default_rng(3))
    keys = make_ordering(a.dtype, None).keys(a)
    for left in range(len(a)):
        for side in ("left", "right"):
            want = [int(np.searchsorted(a[left : left + 1], a[i : i + 1], side=side)[0]) for i in range(len(a))]
            got = [int(np.searchsorted(keys[left : left + 1], keys[i : i + 1], side=side)[0]) for i in range(len(a))]
            assert got == want


@pytest.mark.parametrize(
    "columns",
    [
        [("all equal", 100, 0)],
        [("few values", 100, 2)],
        [("long prefix", 90, 0), ("then all", 10, 256)],
        [("groups", 1, 8), ("gap", 11, 0), ("subgroups", 1, 8), ("gap", 7, 0), ("rest", 12, 256)],
    ],
    ids=lambda columns: str(columns[0][0]),
)
def test_sorting_a_buffer_of_records_allocates_no_more_than_planned(columns: list[tuple[str, int, int]]) -> None:
    rng, count = np.random.default_rng(5), 50_000
    parts = [rng.integers(0, values or 1, (count, width)).astype("u1") for _, width, values in columns]
    a = np.ascontiguousarray(np.concatenate(parts, axis=1))
    dtype = np.dtype(f"S{a.shape[1]}")
    ordering = make_ordering(dtype, None)
    assert isinstance(ordering, RecordOrdering)
    tracemalloc.start()
    try:
        done = ordering.sort(a.reshape(-1).copy(), NO_SPACE)
        base = a.nbytes  # the copy
        peak = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    assert peak <= RECORD_WORK_BYTES * count
    space = np.empty((64 << 10) + dtype.itemsize, np.uint8)
    got = np.concatenate([chunk.copy() for chunk in done.chunks(1000, 64 << 10, space)])
    assert got.tobytes() == np.sort(a.reshape(-1).view(dtype)).tobytes()


def spread(runs: list[NDArray[Any]], gap: int) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """The runs in a buffer, `gap` elements of rubbish between any two, and where in it they are."""
    itemsize = runs[0].dtype.itemsize
    pieces, parts, end = [], [], 0
    for run in runs:
        parts.append((end, end + run.nbytes))
        pieces += [run.view(np.uint8), np.full(gap * itemsize, 0x5A, np.uint8)]
        end += run.nbytes + gap * itemsize
    return np.concatenate(pieces)[: end - gap * itemsize], parts


@pytest.mark.parametrize("dtype", ["i8", ">i4", "f8", ">f4", "c16", "M8[s]", ">m8[ns]", "g", "i2", ">f2"])
@pytest.mark.parametrize("first", [0, 160, 4096])
@pytest.mark.parametrize("gap", [0, 3])
def test_merging_runs_in_a_buffer_gives_them_in_order(dtype: str, first: int, gap: int) -> None:
    kind, counts = np.dtype(dtype), [7000, 0, 1, 4999, 8000]
    rng = np.random.default_rng(6)
    a = (rng.standard_normal(sum(counts)) * 1e3).astype("i8" if kind.kind in "mM" else kind).astype(kind)
    a[rng.integers(0, len(a), 100)] = {"i": 0, "f": np.nan, "c": np.nan}.get(kind.kind, "NaT")
    ends = np.cumsum(counts)
    runs = [np.sort(part) for part in np.split(a, ends[:-1])]
    ordering = make_ordering(kind, None)
    block = 1000 * kind.itemsize
    done = ordering.merge(*spread(runs, gap if ordering.merges_parts else 0), block, NO_SPACE)
    assert isinstance(done, MergedInBlocks) == (kind.itemsize > 2)
    sizes, space = [], np.empty(4096 + block, np.uint8)
    got = b""
    for chunk in done.chunks(first, 4096, space):
        sizes.append(len(chunk))
        got += chunk.tobytes()
    assert sizes[0] == (first or 4096)
    assert set(sizes[1:-1]) == {4096}
    assert_same_order(np.frombuffer(got, kind), sort_by_numpy(a))


@pytest.mark.parametrize("gap", [0, 500])
def test_merging_runs_with_more_equal_numbers_than_a_block_sorts_them_all(gap: int) -> None:
    runs = [np.sort(np.random.default_rng(seed).integers(0, 3, 10_000)) for seed in range(3)]
    ordering = make_ordering(np.dtype(np.int64), None)
    done = ordering.merge(*spread(runs, gap), 8 * 4000, NO_SPACE)
    assert not isinstance(done, MergedInBlocks)
    got = b"".join(chunk.tobytes() for chunk in done.chunks(0, 4096, NO_SPACE))
    assert got == np.sort(np.concatenate(runs)).tobytes()


def test_sort_of_halves_is_right_where_numpys_own_is_not() -> None:
    a = np.random.default_rng(1).integers(-20, 20, 100_000).astype("f2")
    a[::9] = np.nan
    a[1::9] = -np.nan
    a[2::9] = np.inf
    umappy.sort(a, memory="4MiB")
    known = a[~np.isnan(a)]
    assert (known[1:] >= known[:-1]).all()
    assert np.isnan(a[len(known) :]).all()


@pytest.mark.parametrize("dtype", ["u4", "i4", "f4", "u8", "i8", "f8", "c16", "g"])
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("space", [0, 1001, 1 << 20])
def test_sort_numbers_anywhere_in_memory_are_in_order(dtype: str, offset: int, space: int) -> None:
    kind, rng = np.dtype(dtype), np.random.default_rng(7)
    a = make_values(kind, 200_000, 150_000, rng)
    memory = np.empty(a.nbytes + offset, np.uint8)
    numbers = memory[offset:].view(kind)
    numbers[:] = a
    sort_numbers(numbers, np.empty(space + 1, np.uint8)[1:])
    assert_same_order(numbers, np.sort(a))


def test_sort_numbers_keeps_all_bits_of_nan() -> None:
    bits = np.random.default_rng(8).integers(0, 1 << 64, 50_000, np.uint64)
    bits[::5] |= np.uint64(0x7FF0_0000_0000_0000)
    numbers = bits.copy().view("f8")
    sort_numbers(numbers, np.empty(1 << 16, np.uint8))
    count = np.count_nonzero(~np.isnan(numbers))
    assert count < 50_000
    assert np.isnan(numbers[count:]).all()
    assert (numbers[1:count] >= numbers[: count - 1]).all()
    assert np.array_equal(np.sort(numbers.view(np.uint64)), np.sort(bits))

"""What programs do with Python's own mmap objects, and how those answer: a region is one, over a file."""

import mmap
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import umappy

MapStore = Callable[..., umappy.Region]

PAGE = mmap.PAGESIZE
SIZE = 2 * PAGE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """One page of zeros, three letters, the rest zeros."""
    path = tmp_path / "x"
    path.write_bytes(bytes(PAGE) + b"foo" + bytes(PAGE - 3))
    return path


@pytest.fixture
def m(map_store: MapStore, path: Path) -> umappy.Region:
    return map_store(path, mode="r+")


@pytest.fixture
def letters(map_store: MapStore, tmp_path: Path) -> tuple[umappy.Region, bytes]:
    """A region and what is in it: all 256 values, many times over, across pages."""
    data = bytes(range(256)) * 40
    (tmp_path / "letters").write_bytes(data)
    return map_store(tmp_path / "letters", mode="r+"), data


def test_is_an_mmap(m: umappy.Region) -> None:
    assert isinstance(m, mmap.mmap)


def test_len_and_size_are_the_bytes_mapped(m: umappy.Region) -> None:
    assert len(m) == m.size() == SIZE


def test_index_reads_an_int_and_a_slice_reads_bytes(m: umappy.Region) -> None:
    assert m[0] == 0
    assert m[PAGE] == ord("f")
    assert m[0:3] == b"\0\0\0"
    assert m[PAGE : PAGE + 3] == b"foo"


@pytest.mark.parametrize("index", [SIZE, -SIZE - 1, 1 << 62])
def test_index_outside_raises(m: umappy.Region, index: int) -> None:
    with pytest.raises(IndexError):
        m[index]
    with pytest.raises(IndexError):
        m[index] = 1


def test_index_from_the_end_counts_backwards(m: umappy.Region) -> None:
    m[-1] = 5
    assert m[SIZE - 1] == m[-1] == 5
    assert m[-SIZE] == m[0]


def test_assigned_items_and_slices_stay(m: umappy.Region) -> None:
    m[0] = b"3"[0]
    m[PAGE + 3 : PAGE + 7] = b"bar!"
    assert m[0] == b"3"[0]
    assert m[PAGE : PAGE + 8] == b"foobar!\0"
    m.flush()
    assert m[PAGE : PAGE + 8] == b"foobar!\0"


@pytest.mark.parametrize("value", [256, -1, 1 << 40])
def test_item_that_is_no_byte_raises(m: umappy.Region, value: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        m[0] = value


@pytest.mark.parametrize("value", ["a", 1.5, None, b"a"])
def test_item_of_another_type_raises(m: umappy.Region, value: object) -> None:
    with pytest.raises(TypeError):
        m[0] = value  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [b"ab", b"abcd", b""])
def test_slice_of_another_length_raises(m: umappy.Region, value: bytes) -> None:
    with pytest.raises((IndexError, ValueError)):
        m[0:3] = value


def test_items_cannot_be_deleted_or_appended(m: umappy.Region) -> None:
    with pytest.raises(TypeError):
        del m[0]
    with pytest.raises(TypeError):
        del m[0:2]
    with pytest.raises(TypeError):
        m + b"a"  # type: ignore[operator]
    with pytest.raises(TypeError):
        m * 2  # type: ignore[operator]


INDICES = (0, None, 1, 3, 19, 300, 1 << 31, -1, -2, -31, -300)


@pytest.mark.parametrize("step", [step for step in INDICES if step != 0])
def test_extended_slices_read_as_those_of_bytes(letters: tuple[umappy.Region, bytes], step: int | None) -> None:
    region, data = letters
    for start in INDICES:
        for stop in INDICES:
            assert region[start:stop:step] == data[start:stop:step]


@pytest.mark.parametrize("step", [step for step in INDICES if step != 0])
def test_extended_slices_assign_as_those_of_bytearray(letters: tuple[umappy.Region, bytes], step: int | None) -> None:
    region, data = letters
    wanted = bytearray(data)
    for start in INDICES:
        for stop in INDICES:
            new = wanted[start:stop:step][::-1]
            wanted[start:stop:step] = new
            region[start:stop:step] = bytes(new)
    assert region[:] == wanted


def test_slice_with_step_0_raises(m: umappy.Region) -> None:
    with pytest.raises(ValueError, match="step"):
        m[::0]


def test_slice_of_nothing_is_empty(m: umappy.Region) -> None:
    assert m[5:5] == m[10:5] == m[SIZE:] == m[SIZE + 5 :] == b""


def test_find_gives_the_first_place(m: umappy.Region) -> None:
    m[:16] = b"one two ones one"
    assert m.find(b"one") == 0
    assert m.find(b"ones") == 8
    assert m.find(b"foo") == PAGE
    assert m.find(b"nothing") == -1
    assert m.find(b"") == 0


def test_find_looks_only_between_start_and_end(m: umappy.Region) -> None:
    m[:16] = b"one two ones one"
    assert m.find(b"one", 1) == 8
    assert m.find(b"one", 1, 10) == -1
    assert m.find(b"one", 1, 11) == 8
    assert m.find(b"one", -SIZE + 1) == 8
    assert m.find(b"foo", PAGE + 1) == -1
    assert m.find(b"one", SIZE + 1) == -1


def test_find_begins_at_the_position_where_no_start_is_given(m: umappy.Region) -> None:
    m[:16] = b"one two ones one"
    m.seek(9)
    assert m.find(b"one") == 13


def test_rfind_gives_the_last_place(m: umappy.Region) -> None:
    m[:16] = b"one two ones one"
    m.seek(0)
    assert m.rfind(b"one") == 13
    assert m.rfind(b"one", 0, 13) == 8
    assert m.rfind(b"one", 9) == 13
    assert m.rfind(b"one", 0, 2) == -1
    assert m.rfind(b"foo") == PAGE
    assert m.rfind(b"nothing") == -1


def test_find_across_pages_finds(m: umappy.Region) -> None:
    m[PAGE - 3 : PAGE] = b"the"
    assert m.find(b"thefoo") == m.rfind(b"thefoo") == PAGE - 3


def test_seek_and_tell_move_the_position(m: umappy.Region) -> None:
    assert m.tell() == 0
    m.seek(10)
    m.seek(32, os.SEEK_CUR)
    assert m.tell() == 42
    m.seek(-10, os.SEEK_END)
    assert m.tell() == SIZE - 10
    m.seek(0, os.SEEK_SET)
    assert m.tell() == 0
    m.seek(SIZE)
    assert m.read(1) == b""


@pytest.mark.parametrize(("offset", "whence"), [(-1, 0), (SIZE + 1, 0), (1, 2), (-SIZE - 1, 2), (-1, 1), (0, 7)])
def test_seek_outside_raises_and_leaves_the_position(m: umappy.Region, offset: int, whence: int) -> None:
    with pytest.raises(ValueError, match=r"seek|whence"):
        m.seek(offset, whence)
    assert m.tell() == 0


def test_read_moves_on_and_ends_at_the_end(m: umappy.Region) -> None:
    m.seek(PAGE)
    assert m.read(2) == b"fo"
    assert m.read(3) == b"o\0\0"
    assert len(m.read()) == PAGE - 5
    assert m.read() == m.read(5) == b""
    for count in (None, -1):
        m.seek(0)
        assert m.read(count) == m[:]


def test_read_byte_and_write_byte_move_on(m: umappy.Region) -> None:
    m.seek(PAGE)
    assert m.read_byte() == ord("f")
    m.write_byte(ord("x"))
    assert m.tell() == PAGE + 2
    assert m[PAGE : PAGE + 3] == b"fxo"
    m.seek(SIZE)
    with pytest.raises(ValueError, match="out of range"):
        m.read_byte()
    with pytest.raises(ValueError, match="out of range"):
        m.write_byte(1)


def test_write_moves_on_and_reaches_the_file(m: umappy.Region, path: Path) -> None:
    m.seek(PAGE - 2)
    assert m.write(b"abcd") == 4
    assert m.tell() == PAGE + 2
    assert m.write(memoryview(b"ef")) == 2
    m.flush()
    assert path.read_bytes()[PAGE - 3 : PAGE + 5] == b"\0abcdef\0"


def test_write_past_the_end_raises_and_writes_nothing(m: umappy.Region) -> None:
    m.seek(SIZE - 2)
    with pytest.raises(ValueError, match="out of range"):
        m.write(b"abc")
    assert m[-3:] == b"\0\0\0"


def test_readline_ends_after_each_newline(m: umappy.Region) -> None:
    m[:20] = b"first\nsecond\n\nfourth"
    assert [m.readline() for _ in range(3)] == [b"first\n", b"second\n", b"\n"]
    assert m.readline() == b"fourth" + m[20:]
    assert m.readline() == b""


def test_readline_across_pages_reads_the_line(m: umappy.Region) -> None:
    m[:] = b"x" * (SIZE - 1) + b"\n"
    assert m.readline() == b"x" * (SIZE - 1) + b"\n"


@pytest.mark.parametrize(("to", "source", "count"), [(0, 1, 5), (1, 0, 5), (5, 0, 3), (0, 5, 3), (2, 2, 4), (3, 4, 0)])
def test_move_copies_ranges_that_overlap(m: umappy.Region, to: int, source: int, count: int) -> None:
    for base in (0, PAGE - 4):  # and across the end of a page
        m[base : base + 9] = wanted = bytearray(b"ABCDEFGHI")
        wanted[to : to + count] = wanted[source : source + count]
        m.move(base + to, base + source, count)
        assert m[base : base + 9] == wanted


@pytest.mark.parametrize(
    ("to", "source", "count"), [(0, 0, SIZE + 1), (SIZE, 0, 1), (0, SIZE, 1), (-1, 0, 1), (0, -1, 1), (0, 0, -1)]
)
def test_move_of_what_lies_outside_raises(m: umappy.Region, to: int, source: int, count: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        m.move(to, source, count)


def test_iteration_gives_each_byte_as_an_int(letters: tuple[umappy.Region, bytes]) -> None:
    """As indices do; mmap itself gives bytes of length 1 here, which only it does."""
    region, data = letters
    assert list(region) == list(data)
    assert ord("f") in region


def test_regular_expressions_search_it(m: umappy.Region) -> None:
    found = re.search(b"fo+", m)
    assert found is not None
    assert found.span() == (PAGE, PAGE + 3)
    del found


def test_read_only_refuses_every_change(map_store: MapStore, path: Path) -> None:
    m = map_store(path)
    changes: list[Callable[[], object]] = [
        lambda: m.__setitem__(0, 1),
        lambda: m.__setitem__(slice(0, 3), b"abc"),
        lambda: m.write(b"abc"),
        lambda: m.write_byte(1),
        lambda: m.move(0, 1, 2),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="read"):
            change()
    assert m[PAGE : PAGE + 3] == b"foo"


def test_read_only_reads_as_others_do(map_store: MapStore, path: Path) -> None:
    m = map_store(path)
    assert (m.find(b"foo"), m.rfind(b"foo"), m.read(5), m.tell()) == (PAGE, PAGE, bytes(5), 5)


def test_flush_takes_offset_and_size_by_position_and_returns_none(m: umappy.Region) -> None:
    assert m.flush() is None
    assert m.flush(0, PAGE) is None
    assert m.flush(PAGE) is None
    with pytest.raises(ValueError, match="do not lie"):
        m.flush(1, SIZE)


def test_weakly_referenced_region_is_gone_after_its_last_reference(map_store: MapStore, path: Path) -> None:
    pager = umappy.Pager("1MiB")
    m = umappy.umap(path, pager=pager)
    reference = weakref.ref(m)
    assert reference() is m
    del m
    assert reference() is None
    pager.close()


def test_closed_is_false_then_true(m: umappy.Region) -> None:
    assert m.closed is False
    m.close()
    assert m.closed is True


def test_large_offsets_read_and_write(map_store: MapStore, tmp_path: Path) -> None:
    """Beyond 2 and 4 GiB, where counts of 32 bits end."""
    size = (5 << 30) + 10
    m = map_store(tmp_path / "big", size, mode="x", page_size=65536)
    for place in ((1 << 31) - 4, (1 << 32) - 4, size - 8):
        m[place : place + 8] = b"12345678"
        assert m[place : place + 8] == b"12345678"
    assert m.find(b"12345678", (1 << 32) - 100) == (1 << 32) - 4
    m.seek(1 << 32)
    assert m.read(4) == b"5678"
    m.seek(-8, os.SEEK_END)
    assert m.readline() == b"12345678"
    m.move(0, size - 8, 8)
    assert m[:8] == b"12345678"
    m.close()
    with (tmp_path / "big").open("rb") as file:
        file.seek((1 << 31) - 4)
        assert file.read(8) == b"12345678"

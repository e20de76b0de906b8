"""ZstdStore: the contract, opening, packing; and what zstd and readers of the seekable format make of its files."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import zstandard

import umappy
from umappy.errors import StoreCorruptError, StoreExistsError, StoreLockedError
from umappy.stores import LogStore, Store, ZstdStore
from umappy.stores._zstd_pack import ZstdPack
from umappy.stores.testing import StoreContract, read, write
from zst_files import (
    decode_by_tool,
    make_data,
    make_frames,
    read_by_indexed_zstd,
    read_by_pyzstd,
    run_tool,
    write_seekable,
)

PAGE = 65_536
SIZE = 40 * PAGE + 1234
DATA = make_data(SIZE)


class TestZstd(StoreContract):
    options: ClassVar[dict[str, object]] = {}

    def create(self, folder: Path, size: int) -> Store:
        return ZstdStore(folder / "x.zst", "w+", size=size, **self.options)

    def reopen(self, folder: Path, *, writable: bool) -> Store:
        return ZstdStore(folder / "x.zst", "r+" if writable else "r")


class TestSmallPages(TestZstd):
    options: ClassVar[dict[str, object]] = {"page_size": 4096, "level": -5}


class TestLargePages(TestZstd):
    options: ClassVar[dict[str, object]] = {"page_size": "1MiB", "level": 9}


class TestDictionary(TestZstd):
    options: ClassVar[dict[str, object]] = {"page_size": 4096, "dictionary": make_data(9000)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zst"


@pytest.fixture
def written(path: Path) -> Path:
    """DATA, written and flushed."""
    with ZstdStore(path, "x", size=SIZE) as store:
        write(store, 0, DATA)
        store.flush()
    return path


@pytest.fixture
def packed(path: Path) -> Path:
    pack(path, DATA)
    return path


def pack(path: Path, data: bytes, page_size: int = PAGE, level: int = 3, dictionary: bytes = b"") -> None:
    with ZstdPack(str(path), page_size=page_size, level=level, dictionary=dictionary) as target:
        target.write(data)


def draw_stretches(count: int, size: int = SIZE) -> list[tuple[int, int]]:
    chance = random.Random(5)
    starts = [chance.randrange(size) for _ in range(count)]
    return [(start, min(size - start, chance.choice([1, 5000, 200_000]))) for start in starts]


def test_new_file_is_a_zstd_file_of_nothing(path: Path) -> None:
    ZstdStore(path, "x", size=SIZE).close()
    assert decode_by_tool(path) == b""


def test_written_file_passes_the_tool_and_says_it_is_not_packed(written: Path) -> None:
    assert decode_by_tool(written) == b""
    with ZstdStore(written) as store:
        assert not store.packed
        assert read(store) == DATA


def test_packed_file_is_what_the_tool_decodes(packed: Path) -> None:
    assert decode_by_tool(packed) == DATA
    with ZstdStore(packed) as store:
        assert store.packed
        assert read(store) == DATA


@pytest.mark.parametrize("read_stretches", [read_by_pyzstd, read_by_indexed_zstd])
def test_packed_file_is_read_at_random_by_others(packed: Path, read_stretches) -> None:
    stretches = draw_stretches(50)
    assert read_stretches(packed, stretches) == [DATA[at : at + length] for at, length in stretches]


def test_packed_file_that_is_written_still_decodes_to_what_was_packed(packed: Path) -> None:
    with ZstdStore(packed, "r+") as store:
        write(store, 3 * PAGE, b"new" * 1000)
        store.flush()
        assert not store.packed
    assert decode_by_tool(packed) == DATA
    with ZstdStore(packed) as store:
        assert read(store) == DATA[: 3 * PAGE] + b"new" * 1000 + DATA[3 * PAGE + 3000 :]


def test_packed_file_without_a_write_stays_packed(packed: Path) -> None:
    with ZstdStore(packed, "r+") as store:
        store.flush()
    with ZstdStore(packed) as store:
        assert store.packed


@pytest.mark.parametrize("page_size", [4096, 1 << 20])
@pytest.mark.parametrize("level", [-7, 1, 19])
def test_pack_takes_levels_and_page_sizes(path: Path, page_size: int, level: int) -> None:
    pack(path, DATA, page_size, level)
    assert decode_by_tool(path) == DATA
    with ZstdStore(path) as store:
        assert store.page_size == page_size
        assert read(store) == DATA


@pytest.mark.parametrize("data", [b"", b"a", bytes(5_000_000), DATA[:PAGE], DATA[: PAGE + 1]], ids=len)
def test_pack_of_any_length_is_what_the_tool_decodes(path: Path, data: bytes) -> None:
    pack(path, data)
    assert decode_by_tool(path) == data
    with ZstdStore(path) as store:
        assert store.packed
        assert read(store) == data


def test_pack_with_a_dictionary_is_read_with_it(path: Path) -> None:
    dictionary = zstandard.train_dictionary(8192, [DATA[at : at + 3000] for at in range(0, SIZE - 3000, 3000)])
    pack(path, DATA, 4096, 3, dictionary.as_bytes())
    kept = path.with_name("dictionary")
    kept.write_bytes(dictionary.as_bytes())
    assert decode_by_tool(path, "-D", str(kept)) == DATA
    with ZstdStore(path) as store:
        assert store.read_dictionary() == dictionary.as_bytes()
        assert read(store) == DATA


def test_pack_that_is_given_up_leaves_what_was_there(packed: Path) -> None:
    before = packed.read_bytes()
    target = ZstdPack(str(packed), page_size=PAGE, level=3, dictionary=b"")
    target.write(DATA[::-1])
    target.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert packed.read_bytes() == before
    assert os.listdir(packed.parent) == [packed.name]


def test_pack_of_a_store_gives_its_image(written: Path) -> None:
    target = written.with_name("y.zst")
    with ZstdStore(written) as store, ZstdPack(str(target), page_size=PAGE, level=3, dictionary=b"") as out:
        out.write_store(store, 0, 10 * PAGE)
        out.write_store(store, 10 * PAGE, SIZE - 10 * PAGE)
    assert decode_by_tool(target) == DATA


def test_pack_to_a_descriptor_is_a_seekable_file(tmp_path: Path) -> None:
    path = tmp_path / "y.zst"
    with path.open("wb") as file, ZstdPack(file.fileno(), page_size=PAGE, level=3, dictionary=b"") as target:
        target.write(DATA)
    assert decode_by_tool(path) == DATA
    assert read_by_pyzstd(path, [(SIZE - 10, 10)]) == [DATA[-10:]]
    with ZstdStore(path) as store:
        assert store.foreign is not None
        assert store.foreign.seek_table


@pytest.mark.parametrize("kind", ["seekable", "frames", "one frame", "without sizes"])
def test_foreign_file_opened_for_writing_becomes_ours(path: Path, kind: str) -> None:
    if kind == "seekable":
        write_seekable(path, DATA, 70_000)
    else:
        size = SIZE if kind == "one frame" else 50_000
        path.write_bytes(b"".join(make_frames(DATA, size, write_content_size=kind != "without sizes")))
    with ZstdStore(path, "r+") as store:
        assert store.foreign is None
        assert store.page_size == PAGE
        assert read(store) == DATA
        write(store, 123_456, b"new" * 500)
        store.flush()
    wanted = bytearray(DATA)
    wanted[123_456 : 123_456 + 1500] = b"new" * 500
    with ZstdStore(path) as store:
        assert read(store) == wanted
        assert store.verify() == []
    assert decode_by_tool(path) == DATA


def test_flush_makes_the_whole_image_durable_for_another_process(path: Path) -> None:
    code = f"""
import os
from umappy.stores import ZstdStore
from zst_files import make_data
store = ZstdStore({str(path)!r}, "x", size={SIZE})
store.write(0, make_data({SIZE}))
store.flush()
store.write(0, bytes(500_000))
os._exit(0)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent / "helpers")}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)
    with ZstdStore(path) as store:
        assert read(store) == DATA


def test_larger_size_makes_it_longer_by_zeros(written: Path) -> None:
    with ZstdStore(written, "r+", size=SIZE + 3 * PAGE) as store:
        assert read(store, SIZE - 10, 10 + 3 * PAGE) == DATA[-10:] + bytes(3 * PAGE)
        store.flush()
    with ZstdStore(written) as store:
        assert store.size == SIZE + 3 * PAGE


def test_zeros_take_no_space(path: Path) -> None:
    with ZstdStore(path, "x", size="1TiB") as store:
        store.write((1 << 40) - 5, b"hello")
        store.flush()
        assert store.info().allocated < 1 << 20
    with ZstdStore(path) as store:
        assert read(store, (1 << 40) - 6, 6) == b"\0hello"


def test_second_writer_is_refused_and_readers_are_not(written: Path) -> None:
    with ZstdStore(written, "r+"):
        with pytest.raises(StoreLockedError):
            ZstdStore(written, "r+")
        ZstdStore(written).close()
        ZstdStore(written, "r+", lock=False).close()


def test_create_of_what_exists_raises(written: Path) -> None:
    with pytest.raises(StoreExistsError):
        ZstdStore(written, "x", size=SIZE)
    with ZstdStore(written) as store:
        assert read(store) == DATA


def test_w_plus_empties(written: Path) -> None:
    with ZstdStore(written, "w+", size=100) as store:
        assert read(store) == bytes(100)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "w+"}, "size"),
        ({"mode": "q"}, "mode"),
        ({"level": 0}, "level is 0"),
        ({"level": 23}, "level is 23"),
        ({"level": "3"}, "level is '3'"),
        ({"page_size": 5000}, "5000"),
        ({"page_size": "16MiB"}, "16MiB"),
        ({"dictionary": b"short"}, "5 bytes"),
        ({"mode": "r+", "page_size": "4KiB"}, "64 KiB|65536"),
        ({"size": SIZE + 1}, str(SIZE)),
    ],
)
def test_arguments_that_do_not_fit_raise_and_are_named(written: Path, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ZstdStore(written, **options)


def test_pickled_store_opens_again_for_reading(written: Path) -> None:
    with ZstdStore(written, "r+") as store, pickle.loads(pickle.dumps(store)) as again:
        assert again.mode == "r"
        assert read(again) == DATA


def test_dictionary_of_a_file_may_be_given_again_and_no_other(path: Path) -> None:
    words = make_data(9000)
    ZstdStore(path, "x", size=SIZE, dictionary=words).close()
    for mode in ("r", "r+"):
        ZstdStore(path, mode, dictionary=words).close()
        with pytest.raises(ValueError, match="dictionary is not"):
            ZstdStore(path, mode, dictionary=words[:-1])
    with ZstdStore(path) as store, pickle.loads(pickle.dumps(store)) as again:
        assert again.read_dictionary() == words


def test_info_counts_what_is_dead(packed: Path) -> None:
    with ZstdStore(packed, "r+") as store:
        before = store.info()
        write(store, 0, DATA[: 10 * PAGE])
        store.flush()
        after = store.info()
    assert before.dead == 0
    assert after.base == before.base
    assert after.dead > 5 * PAGE * before.file_size // SIZE


def test_verify_of_a_whole_file_finds_nothing(written: Path, packed: Path) -> None:
    for path in (written, packed):
        with ZstdStore(path) as store:
            assert store.verify() == []
            store.verify_frames()


def test_verify_names_each_damaged_page(packed: Path) -> None:
    content = bytearray(packed.read_bytes())
    at = len(content) // 2
    content[at] ^= 1
    packed.write_bytes(content)
    with ZstdStore(packed) as store:
        damage = store.verify()
        assert len(damage) == 1
        page, error = damage[0]
        assert isinstance(error, StoreCorruptError)
        with pytest.raises(StoreCorruptError):
            read(store, page * PAGE, 10)


@pytest.mark.parametrize("bounds", [(-1, 1), (0, 42), (41, 1), (5, -1)])
def test_verify_of_pages_that_are_none_raises(written: Path, bounds: tuple[int, int]) -> None:
    with ZstdStore(written) as store, pytest.raises(ValueError, match="41"):
        store.verify(*bounds)


def test_region_takes_the_page_size_of_the_store(written: Path) -> None:
    with umappy.Pager("8MiB", fillers=2, evictors=1) as pager:
        for store in (written, ZstdStore(written), LogStore(ZstdStore(written))):
            region = umappy.umap(store, pager=pager)
            assert region.page_size == PAGE
            region.close()
        with pytest.raises(ValueError, match=r"4 KiB.*64 KiB"):
            umappy.umap(written, page_size="4KiB", pager=pager)
        region = umappy.umap(written, page_size="128KiB", pager=pager)
        assert region[:] == DATA
        region.close()


def test_region_makes_a_new_file_with_smaller_pages_where_its_own_are(path: Path) -> None:
    with umappy.Pager("8MiB", fillers=2, evictors=1) as pager:
        umappy.umap(path, "1MiB", mode="x", page_size="4KiB", pager=pager).close()
        with ZstdStore(path) as store:
            assert store.page_size == 4096


def test_region_that_cannot_hold_the_pages_leaves_the_file_alone(written: Path) -> None:
    with umappy.Pager("3MiB", fillers=2, evictors=1) as pager, pytest.raises(umappy.BudgetError):
        umappy.umap(written, "1MiB", mode="w+", page_size="8MiB", pager=pager)
    with ZstdStore(written) as store:
        assert read(store) == DATA


def test_region_is_written_through_many_evictions(path: Path) -> None:
    values = np.frombuffer(make_data(16 << 20), np.uint64)
    with umappy.Pager("6MiB", fillers=2, evictors=1) as pager:
        region = umappy.umap(path, values.nbytes, mode="x", pager=pager)
        array = np.frombuffer(region, np.uint64)
        array[:] = values
        array[::1000] += 1
        wanted = values.copy()
        wanted[::1000] += 1
        assert (array == wanted).all()
        del array
        region.close()
    with ZstdStore(path) as store:
        assert read(store) == wanted.tobytes()
        assert store.verify() == []
    run_tool("zstd", "-q", "-t", path)

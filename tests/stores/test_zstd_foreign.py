"""ZstdStore over files that umappy did not write: what others make, what is damaged, what it costs."""

import os
import pickle
import random
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zstandard

import umappy
from umappy.errors import StoreCorruptError, StoreError, StoreTruncatedError
from umappy.stores import ZstdCostWarning, ZstdStore, _zstd_foreign
from umappy.stores.testing import read
from zst_files import make_data, make_frames, make_skippable, run_tool, write_seekable

SIZE = 3_000_001
DATA = make_data(SIZE)


def make_by_tool(*options: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        plain = path.with_suffix(".plain")
        plain.write_bytes(DATA)
        run_tool("zstd", "-q", *options, plain, "-o", path)

    return make


def make_by_pipe(path: Path) -> None:
    path.write_bytes(run_tool("zstd", "-q", "-c", data=DATA))


def make_by_frames(frame_size: int, **options: object) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(b"".join(make_frames(DATA, frame_size, **options)))


def make_with_skippables(path: Path) -> None:
    """As pzstd does, and with frames of nothing."""
    nothing = zstandard.ZstdCompressor().compress(b"")
    frames = [make_skippable(b"x" * (i % 5)) + frame + nothing for i, frame in enumerate(make_frames(DATA, 100_000))]
    path.write_bytes(b"".join(frames) + make_skippable(b"the end"))


def make_seekable(path: Path) -> None:
    write_seekable(path, DATA, 70_000)


def make_streamed(path: Path) -> None:
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        writer.write(DATA)


def make_by_pzstd(path: Path) -> None:
    plain = path.with_suffix(".plain")
    plain.write_bytes(DATA * 6)
    run_tool("pzstd", "-q", "-p2", plain, "-o", path)


KINDS = {
    "zstd": make_by_tool(),
    "zstd --no-check": make_by_tool("--no-check"),
    "zstd -T0 -19": make_by_tool("-T0", "-12"),
    "zstd --fast": make_by_tool("--fast=5"),
    "zstd --long": make_by_tool("--long=27"),
    "zstd from a pipe": make_by_pipe,
    "zstandard, one frame": make_by_frames(SIZE),
    "zstandard, streamed": make_streamed,
    "zstandard, frames": make_by_frames(50_000),
    "zstandard, frames with checksums": make_by_frames(4096, write_checksum=True),
    "zstandard, frames without sizes": make_by_frames(300_000, write_content_size=False),
    "frames between skippable frames": make_with_skippables,
    "pyzstd, seekable": make_seekable,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zst"


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def foreign(request: pytest.FixtureRequest, path: Path) -> Path:
    request.param(path)
    return path


def test_foreign_file_reads_as_it_was_written(foreign: Path) -> None:
    with ZstdStore(foreign) as store:
        assert not store.writable
        assert store.foreign is not None
        assert store.packed
        assert read(store) == DATA


def test_foreign_file_reads_at_random(foreign: Path) -> None:
    chance = random.Random(3)
    with ZstdStore(foreign) as store:
        for _ in range(60):
            offset = chance.randrange(SIZE)
            length = min(SIZE - offset, chance.choice([1, 100, 4096, 200_000]))
            assert read(store, offset, length) == DATA[offset : offset + length]


def test_foreign_file_reads_from_many_threads(foreign: Path) -> None:
    places = [(at, min(65_536, SIZE - at)) for at in range(0, SIZE, 65_536)]
    random.Random(4).shuffle(places)
    with ZstdStore(foreign) as store, ThreadPoolExecutor(6) as pool:
        got = pool.map(lambda place: read(store, *place), places)
        assert all(block == DATA[at : at + length] for block, (at, length) in zip(got, places, strict=True))


def test_foreign_file_maps_in_a_small_pager(foreign: Path) -> None:
    with umappy.Pager("6MiB", fillers=2, evictors=1) as pager:
        region = umappy.umap(foreign, pager=pager)
        array = np.frombuffer(region, np.uint8)
        assert (array == np.frombuffer(DATA, np.uint8)).all()
        assert (array[::-4097] == np.frombuffer(DATA, np.uint8)[::-4097]).all()
        del array
        assert pager.stats().peak_used <= pager.memory
        region.close()


def test_caches_of_a_mapped_file_come_out_of_the_budget(path: Path) -> None:
    make_by_frames(50_000)(path)
    with umappy.Pager("64MiB", fillers=2, evictors=1) as pager:
        before = pager.stats().overhead
        region = umappy.umap(path, pager=pager, readahead=False)
        assert 1 << 20 <= pager.stats().overhead - before <= (64 << 20) // 8
        region.close()
        assert pager.stats().overhead == before


def test_foreign_file_verifies_as_whole(foreign: Path) -> None:
    with ZstdStore(foreign) as store:
        assert store.verify() == []
        store.verify_frames()


def test_pzstd_file_reads_as_it_was_written(path: Path) -> None:
    make_by_pzstd(path)
    with ZstdStore(path) as store:
        assert read(store, SIZE - 100, 200) == (DATA[-100:] + DATA[:100])
        assert store.size == 6 * SIZE


def test_seek_table_saves_decoding(path: Path) -> None:
    make_seekable(path)
    with ZstdStore(path) as store:
        assert store.foreign.seek_table
        assert store.foreign.decoded == 0
        assert store.foreign.frames == -(-SIZE // 70_000)


def test_sizes_in_headers_save_decoding(path: Path) -> None:
    make_by_frames(50_000)(path)
    with ZstdStore(path) as store:
        assert not store.foreign.seek_table
        assert store.foreign.decoded == 0


def test_seek_table_of_another_file_is_not_used(path: Path) -> None:
    other = path.with_name("y.zst")
    make_seekable(other)
    table = other.read_bytes()[-(8 + 8 * (-(-SIZE // 70_000)) + 9) :]
    make_by_frames(60_000)(path)
    path.write_bytes(path.read_bytes() + table)
    with ZstdStore(path) as store:
        assert store.foreign.seek_table_wrong
        assert not store.foreign.seek_table
        assert read(store) == DATA


def test_empty_image_opens_and_cannot_be_mapped(path: Path) -> None:
    path.write_bytes(zstandard.ZstdCompressor().compress(b""))
    with ZstdStore(path) as store:
        assert store.size == 0
        assert store.verify() == []
    with pytest.raises(ValueError, match="empty"):
        umappy.umap(path)


def test_dictionary_is_asked_for_and_used(path: Path) -> None:
    samples = [make_data(2000, seed) + b"sample" * 50 for seed in range(200)]
    dictionary = zstandard.train_dictionary(4096, samples)
    path.write_bytes(b"".join(make_frames(DATA, 9000, dict_data=dictionary)))
    with ZstdStore(path) as store, pytest.raises(StoreError, match="dictionary="):
        read(store, 0, 100)
    for given in (dictionary, dictionary.as_bytes(), memoryview(dictionary.as_bytes())):
        with ZstdStore(path, dictionary=given) as store:
            assert read(store) == DATA


def test_wrong_dictionary_is_an_error(path: Path) -> None:
    words = [[b"%d %s %d" % (i, word, i * i) * 20 for i in range(200)] for word in (b"first", b"second")]
    first, second = (zstandard.train_dictionary(4096, samples) for samples in words)
    path.write_bytes(b"".join(make_frames(DATA, 9000, dict_data=first)))
    with ZstdStore(path, dictionary=second) as store, pytest.raises(StoreError, match="dictionary"):
        read(store, 0, 100)


def test_write_to_a_foreign_file_raises(path: Path) -> None:
    make_by_frames(50_000)(path)
    with ZstdStore(path) as store:
        with pytest.raises(OSError, match="read"):
            store.write(0, b"a")
        with pytest.raises(ValueError, match="foreign"):
            store.info()


def test_size_beyond_a_foreign_file_raises(path: Path) -> None:
    make_by_frames(50_000)(path)
    with pytest.raises(ValueError, match=r"r\+"):
        ZstdStore(path, size=SIZE + 1)


def test_pickled_store_opens_again(path: Path) -> None:
    make_by_frames(50_000)(path)
    with ZstdStore(path) as store, pickle.loads(pickle.dumps(store)) as again:
        assert read(again, 49_990, 20) == DATA[49_990:50_010]


@pytest.mark.parametrize(
    "content", [b"text", b"\x1f\x8b\x08\x00gzip", b"\x28\xb5\x2f", b"\x28\xb5\x2f\xfd\xff\xff\xff"]
)
def test_file_that_is_none_raises_and_is_named(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises((StoreCorruptError, StoreTruncatedError), match=str(path)):
        ZstdStore(path)


def test_empty_file_raises(path: Path) -> None:
    path.touch()
    with pytest.raises(StoreError, match="empty"):
        ZstdStore(path)


def test_folder_and_missing_file_raise(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ZstdStore(path)
    path.mkdir()
    with pytest.raises((OSError, ValueError), match=str(path)):
        ZstdStore(path)


@pytest.mark.parametrize("kind", ["zstandard, frames", "zstd", "pyzstd, seekable", "zstandard, frames without sizes"])
def test_cut_file_raises_or_is_read_right(path: Path, kind: str) -> None:
    """Cut between frames it is a smaller file, as for zstd -d."""
    KINDS[kind](path)
    content = path.read_bytes()
    for cut in (len(content) - 1, len(content) // 2, 100_000, 17, 5):
        path.write_bytes(content[:cut])
        with pytest.raises((StoreCorruptError, StoreTruncatedError)), ZstdStore(path) as store:
            read(store)


def test_garbage_after_the_last_frame_raises(path: Path) -> None:
    make_by_frames(50_000)(path)
    path.write_bytes(path.read_bytes() + b"garbage")
    with pytest.raises(StoreCorruptError, match="no zstd frame"):
        ZstdStore(path)


def test_flipped_bit_in_a_checked_frame_is_found_where_it_is(path: Path) -> None:
    frames = make_frames(DATA, 65_536, write_checksum=True)
    damaged = bytearray(frames[7])
    damaged[-1] ^= 1
    path.write_bytes(b"".join([*frames[:7], bytes(damaged), *frames[8:]]))
    with ZstdStore(path) as store:
        assert [page * store.page_size // 65_536 for page, _ in store.verify()] == [7] * (65_536 // store.page_size)
        with pytest.raises(StoreCorruptError, match="does not decode"):
            read(store, 7 * 65_536, 10)
        assert read(store, 8 * 65_536, 10) == DATA[8 * 65_536 : 8 * 65_536 + 10]


def test_file_that_shrank_after_it_was_opened_raises(path: Path) -> None:
    make_by_frames(50_000)(path)
    with ZstdStore(path) as store:
        os.truncate(path, 1000)
        with pytest.raises(StoreTruncatedError):
            read(store, SIZE - 100, 100)


def test_large_frame_warns_and_names_the_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_zstd_foreign, "LARGE_FRAME", SIZE - 1)
    make_by_frames(SIZE)(path)
    with pytest.warns(ZstdCostWarning, match="umappy pack"):
        ZstdStore(path).close()


def test_large_frame_in_a_file_made_ours_warns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_zstd_foreign, "LARGE_FRAME", SIZE - 1)
    make_by_frames(SIZE)(path)
    for mode in ("r+", "r"):
        with pytest.warns(ZstdCostWarning, match="umappy pack"):
            ZstdStore(path, mode).close()


def test_file_with_a_dictionary_for_a_later_frame_is_not_made_ours_and_stays(path: Path) -> None:
    samples = [b"hello world %d " % i * 20 for i in range(2000)]
    dictionary = zstandard.train_dictionary(4096, samples)
    path.write_bytes(b"".join(make_frames(DATA, 9000)) + b"".join(make_frames(DATA, 9000, dict_data=dictionary)))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="dictionary"):
        ZstdStore(path, "r+")
    assert path.read_bytes() == before


def test_file_with_a_dictionary_is_not_made_ours_and_stays(path: Path) -> None:
    dictionary = zstandard.train_dictionary(4096, [b"%d word %d" % (i, i * i) * 20 for i in range(300)])
    path.write_bytes(b"".join(make_frames(DATA, 9000, dict_data=dictionary)))
    before = path.read_bytes()
    for given in (None, dictionary):
        with pytest.raises(ValueError, match="dictionary"):
            ZstdStore(path, "r+", dictionary=given)
    assert path.read_bytes() == before


def test_file_without_sizes_warns_and_tells_how_far_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_zstd_foreign, "LARGE_UNKNOWN", 1)
    monkeypatch.setattr(_zstd_foreign, "STEP_MS", 0)
    path.write_bytes(b"".join(make_frames(DATA * 10, SIZE, write_content_size=False)))
    seen = []
    with pytest.warns(ZstdCostWarning, match="decoded"):
        ZstdStore(path, _report=lambda done, total: seen.append((done, total))).close()
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {path.stat().st_size}


def test_file_without_sizes_can_be_given_up_while_it_opens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_zstd_foreign, "STEP_MS", 0)
    path.write_bytes(b"".join(make_frames(DATA * 10, SIZE, write_content_size=False)))

    def give_up(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ZstdStore(path, _report=give_up)


def test_window_beyond_the_usual_is_refused_with_a_remedy(path: Path) -> None:
    plain = path.with_suffix(".plain")
    plain.write_bytes(DATA)
    with plain.open("rb") as file, path.open("wb") as target:
        parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, write_content_size=False)
        zstandard.ZstdCompressor(compression_params=parameters).copy_stream(file, target)
    with pytest.raises(StoreError, match="umappy pack"):
        ZstdStore(path)
    with ZstdStore(path, _lenient=True) as store:
        assert read(store, 1_000_000, 100) == DATA[1_000_000:1_000_100]


def test_readers_of_one_large_frame_do_not_begin_anew_each(path: Path) -> None:
    """Blocks asked for in order by six threads: a stream that began anew for each would decode fifty times as much."""
    data = DATA * 10
    path.write_bytes(zstandard.ZstdCompressor().compress(data))
    block = 300_000
    turns = iter(range(0, len(data), block))
    lock = threading.Lock()
    with ZstdStore(path) as store:

        def work(_: int) -> None:
            while True:
                with lock:
                    at = next(turns, None)
                if at is None:
                    return
                assert read(store, at, min(block, len(data) - at)) == data[at : at + block]

        with warnings.catch_warnings(), ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))

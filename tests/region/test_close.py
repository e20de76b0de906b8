"""Closing: what keeps a region open, what is in the store afterwards, and that everything goes on where it fails."""

import gc
import pickle
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import umappy
from umappy.stores.testing import make_bytes
from umappy.stores.wrappers import DelayStore

MapStore = Callable[..., umappy.Region]
MakeFile = Callable[..., Path]
MakePager = Callable[..., umappy.Pager]
RunPython = Callable[..., subprocess.CompletedProcess[str]]

SIZE = (1 << 20) + 77


@pytest.fixture
def path(make_file: MakeFile) -> Path:
    return make_file(SIZE)


@pytest.fixture
def region(map_store: MapStore, path: Path) -> umappy.Region:
    return map_store(path, mode="r+")


def test_close_writes_everything_to_the_store(region: umappy.Region, path: Path) -> None:
    region[:] = make_bytes(2, SIZE)
    region.close()
    assert path.read_bytes() == make_bytes(2, SIZE)


def test_close_with_discard_gives_dirty_pages_up(region: umappy.Region, path: Path) -> None:
    region[:4096] = bytes(4096)
    region.close(discard=True)
    assert path.read_bytes() == make_bytes(1, SIZE)


def test_close_with_discard_keeps_what_was_flushed(region: umappy.Region, path: Path) -> None:
    region[:4096] = bytes(4096)
    region.flush()
    region[:4096] = b"\1" * 4096
    region.close(discard=True)
    assert path.read_bytes()[:4096] == bytes(4096)


def test_close_with_discard_and_a_living_view_raises_and_gives_nothing_up(region: umappy.Region, path: Path) -> None:
    region[:] = make_bytes(2, SIZE)
    with memoryview(region) as view:
        with pytest.raises(BufferError):
            region.close(discard=True)
        assert view == make_bytes(2, SIZE)
    region.close()
    assert path.read_bytes() == make_bytes(2, SIZE)


def test_close_again_does_nothing(region: umappy.Region) -> None:
    region.close()
    region.close()
    assert region.closed


def test_close_of_a_read_only_region_leaves_the_file(map_store: MapStore, path: Path) -> None:
    region = map_store(path)
    assert region[SIZE - 1] == make_bytes(1, SIZE)[SIZE - 1]
    region.close()
    assert path.read_bytes() == make_bytes(1, SIZE)


def test_close_gives_memory_and_the_store_back(map_store: MapStore, make_pager: MakePager, path: Path) -> None:
    pager = make_pager()
    used = []
    for _ in range(3):
        region = map_store(path, mode="r+", pager=pager)
        region[:] = bytes(SIZE)
        region.close()
        after = pager.stats()
        assert (after.regions, after.resident, after.dirty) == (0, 0, 0)
        used.append(after.used)
        umappy.FileStore(path, "r+").close()
    assert used[1] == used[2] == after.overhead


@pytest.mark.parametrize("view", [memoryview, lambda region: np.frombuffer(region, np.uint8)], ids=["view", "array"])
def test_close_with_a_living_view_raises_and_everything_goes_on(
    region: umappy.Region, path: Path, view: Callable[[umappy.Region], object]
) -> None:
    living = view(region)
    for round_ in range(3):
        region[:] = make_bytes(round_, SIZE)
        with pytest.raises(BufferError):
            region.close()
        assert not region.closed
        assert bytes(living) == make_bytes(round_, SIZE)  # type: ignore[arg-type]
        region.flush()
        assert path.read_bytes() == make_bytes(round_, SIZE)
    del living
    region.close()
    assert region.closed


def test_close_with_a_living_view_has_flushed_already(region: umappy.Region, path: Path) -> None:
    array = np.frombuffer(region, np.uint8)
    array[:] = 9
    with pytest.raises(BufferError):
        region.close()
    assert path.read_bytes() == b"\x09" * SIZE
    del array


def test_close_while_another_thread_writes_without_the_gil_raises_and_loses_nothing(
    region: umappy.Region, path: Path
) -> None:
    array = np.frombuffer(region, np.int64, SIZE // 8)
    expected = array.copy()
    rounds = 0
    stop = threading.Event()

    def write(counters: NDArray[np.int64]) -> None:
        nonlocal rounds
        while not stop.is_set():
            np.add(counters, 1, out=counters)  # lets go of the GIL
            rounds += 1

    thread = threading.Thread(target=write, args=(array,))
    thread.start()
    try:
        refused = 0
        while refused < 5 or rounds < 5:
            with pytest.raises(BufferError):
                region.close()
            refused += 1
    finally:
        stop.set()
        thread.join()
    assert (array == expected + rounds).all()
    del array, thread
    region.close()
    assert (np.fromfile(path, np.int64, SIZE // 8) == expected + rounds).all()


def test_close_while_other_threads_call_methods_ends_them_with_an_error_that_says_so(
    region: umappy.Region, path: Path
) -> None:
    errors: list[Exception] = []
    started = threading.Barrier(5)

    def work(seed: int) -> None:
        places = np.random.default_rng(seed).integers(0, SIZE, 100_000).tolist()
        started.wait()
        try:
            for place in places:
                region[place] = seed
                region.flush(place, 1)
                region.prefetch(slice(place, None))
                region.evict(slice(place, place + 1))
                region.stats()
        except (ValueError, IndexError) as error:  # mmap's own, or ClosedError, which is one
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    time.sleep(0.2)
    region.close()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert all("closed" in str(error) or "unmapped" in str(error) for error in errors), errors


def test_close_from_two_threads_at_once_closes_once(map_store: MapStore, make_file: MakeFile) -> None:
    for _ in range(20):
        path = make_file(64 << 10)
        region = map_store(path, mode="r+")
        region[:] = bytes(64 << 10)
        both = threading.Barrier(2)
        errors: list[BaseException] = []

        def close(region: umappy.Region = region, both: threading.Barrier = both) -> None:
            both.wait()
            try:
                region.close()
            except BaseException as error:
                errors.append(error)  # noqa: B023  (threads end within the loop's round)

        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert region.closed
        assert path.read_bytes() == bytes(64 << 10)


def test_with_closes_at_the_end(map_store: MapStore, path: Path) -> None:
    with map_store(path, mode="r+") as region:
        region[0:3] = b"abc"
    assert region.closed
    assert path.read_bytes()[:3] == b"abc"


def test_with_closes_when_the_body_raises(map_store: MapStore, path: Path) -> None:
    region = map_store(path, mode="r+")
    region[0:3] = b"abc"
    with pytest.raises(ZeroDivisionError), region:
        1 / 0  # noqa: B018
    assert region.closed
    assert path.read_bytes()[:3] == b"abc"


def test_with_never_masks_the_body_s_exception(region: umappy.Region) -> None:
    view = memoryview(region)
    with pytest.raises(ZeroDivisionError) as caught, region:
        1 / 0  # noqa: B018
    assert "could not be closed" in caught.value.__notes__[0]
    assert not region.closed
    view.release()


def test_with_raises_where_only_closing_fails(region: umappy.Region) -> None:
    with memoryview(region), pytest.raises(BufferError), region:
        pass


def test_with_after_close_raises_at_once(region: umappy.Region) -> None:
    region.close()
    with pytest.raises(ValueError, match="closed"), region:
        pytest.fail("the body of a closed region ran")


METHODS: dict[str, Callable[[umappy.Region], object]] = {
    "flush": lambda r: r.flush(),
    "evict": lambda r: r.evict(),
    "prefetch": lambda r: r.prefetch(),
    "overwrite": lambda r: r.overwrite(0, b"x"),
    "residency": lambda r: r.residency(),
    "stats": lambda r: r.stats(),
    "check": lambda r: r.check(),
    "errors": lambda r: r.errors,
    "retry": lambda r: r.retry(),
    "madvise": lambda r: r.madvise(4),
    "size": lambda r: r.size(),
    "len": len,
    "index": lambda r: r[0],
    "slice": lambda r: r[:],
    "read": lambda r: r.read(),
    "find": lambda r: r.find(b"x"),
    "move": lambda r: r.move(0, 1, 1),
    "memoryview": memoryview,
    "frombuffer": np.frombuffer,
}


@pytest.mark.parametrize("name", METHODS)
def test_method_after_close_raises(region: umappy.Region, name: str) -> None:
    region.close()
    with pytest.raises(ValueError, match="closed"):
        METHODS[name](region)


def test_repr_after_close_says_so(region: umappy.Region) -> None:
    region.close()
    assert repr(region) == "<umappy.Region closed>"


def test_garbage_region_has_written_everything(make_pager: MakePager, path: Path) -> None:
    pager = make_pager()
    region = umappy.umap(path, mode="r+", page_size=4096, pager=pager)
    region[:] = make_bytes(2, SIZE)
    del region
    gc.collect()
    assert pager.stats().regions == 0
    assert path.read_bytes() == make_bytes(2, SIZE)


def test_garbage_array_closes_its_region(make_pager: MakePager, path: Path) -> None:
    pager = make_pager()
    array = np.frombuffer(umappy.umap(path, mode="r+", page_size=4096, pager=pager), np.uint8)
    array[:] = 5
    assert pager.stats().regions == 1
    del array
    gc.collect()
    assert pager.stats().regions == 0
    assert path.read_bytes() == b"\x05" * SIZE


def test_garbage_region_in_a_cycle_has_written_everything(make_pager: MakePager, path: Path) -> None:
    class Holder:
        pass

    pager = make_pager()
    holder = Holder()
    holder.me, holder.region = holder, umappy.umap(path, mode="r+", page_size=4096, pager=pager)  # type: ignore[attr-defined]
    holder.region[:] = bytes(SIZE)  # type: ignore[attr-defined]
    del holder
    gc.collect()
    assert pager.stats().regions == 0
    assert path.read_bytes() == bytes(SIZE)


def test_garbage_pager_lives_on_for_its_regions(path: Path) -> None:
    region = umappy.umap(path, page_size=4096, pager=umappy.Pager("1MiB"))
    gc.collect()
    assert region[:] == make_bytes(1, SIZE)
    region.close()


def test_region_pickled_raises(region: umappy.Region) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(region)


def test_exit_with_dirty_regions_writes_them(run_python: RunPython, path: Path) -> None:
    """One in a module, one in a cycle, one that only an array holds."""
    parts = [path.with_suffix(f".{i}") for i in range(3)]
    for part in parts:
        part.write_bytes(make_bytes(1, SIZE))
    done = run_python(
        """
        regions = [umappy.umap(p, mode="r+") for p in sys.argv[1:]]
        for region in regions:
            region[:] = b"\\x07" * len(region)
        alone = regions[0]
        cycle = [regions[1]]
        cycle.append(cycle)
        array = np.frombuffer(regions[2], np.uint8)
        del regions, region
        """,
        *parts,
    )
    assert done.stderr == ""
    for part in parts:
        assert part.read_bytes() == b"\x07" * SIZE


def test_exit_while_daemon_threads_write_ends_and_has_the_writes_before_it(run_python: RunPython, path: Path) -> None:
    done = run_python(
        """
        pager = umappy.Pager("512KiB", fillers=1, evictors=1)
        region = umappy.umap(sys.argv[1], mode="r+", page_size=4096, pager=pager)
        array = np.frombuffer(region, np.uint8)
        array[: len(array) // 2] = 7
        def work():
            half = np.frombuffer(region, np.uint8)[len(region) // 2 + 4096:]
            while True:
                np.add(half, 1, out=half)
        def touch():
            while True:
                for i in range(0, len(region) // 2, 4096):
                    region[i]
        for target in (work, touch):
            threading.Thread(target=target, daemon=True).start()
        time.sleep(0.3)
        """,
        path,
    )
    assert done.stderr == ""
    assert path.read_bytes()[: SIZE // 2] == b"\x07" * (SIZE // 2)


def test_close_of_a_read_only_region_while_it_is_read_ahead_waits_for_that(
    make_pager: MakePager, make_file: MakeFile
) -> None:
    path = make_file(32 << 20)
    store = DelayStore(umappy.FileStore(path), 0.8, op="read", skip=8)
    region = umappy.umap(store, pager=make_pager(memory=32 << 20, fillers=4))
    for offset in range(0, 2 << 20, 4096):
        region[offset]
    assert region.pager.stats().readahead > 0
    region.close()
    assert region.closed

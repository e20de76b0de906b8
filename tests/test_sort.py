"""`umappy.sort`: where results go, what it costs, and what is left when it fails."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import umappy
from umappy._sort import job, merge, runs, scratch
from umappy._sort.keys import NumberOrdering

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def pager() -> Iterator[umappy.Pager]:
    with umappy.Pager(memory=8 * MIB, fillers=2, evictors=1) as pager:
        yield pager


def make_file(path: Path, count: int, seed: int = 1) -> NDArray[np.int64]:
    numbers = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count)
    numbers.tofile(path)
    return numbers


def test_sort_in_place_writes_the_sorted_file(pager: umappy.Pager, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "data", 4 * MIB)
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        assert umappy.sort(np.frombuffer(region, np.int64)).ndim == 1
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == np.sort(numbers).tobytes()


def test_sort_reads_and_writes_each_byte_twice(tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "data", 8 * MIB)
    with (
        umappy.Pager(memory=16 * MIB) as pager,
        umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region,
    ):
        umappy.sort(np.frombuffer(region, np.int64))
        region.flush()
        stats = pager.stats()
    assert 1.99 * numbers.nbytes <= stats.bytes_written <= 2.05 * numbers.nbytes
    # Where partitions meet, a page of each run is read twice; and what was fetched ahead is at times evicted again:
    # with so small a budget, a fifth.
    assert 1.95 * numbers.nbytes <= stats.bytes_read <= 2.5 * numbers.nbytes


@pytest.mark.parametrize(("size", "memory"), [(3 * MIB, 8 * MIB), (24 * MIB, 64 * MIB)])
def test_sort_of_what_fits_reads_and_writes_each_byte_once(size: int, memory: int, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "data", size // 8)
    with (
        umappy.Pager(memory=memory, fillers=2, evictors=1) as pager,
        umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region,
    ):
        umappy.sort(np.frombuffer(region, np.int64))
        region.flush()
        stats = pager.stats()
    assert stats.bytes_read <= 1.2 * numbers.nbytes  # what is fetched ahead may come late, and once more
    assert stats.bytes_written <= 1.05 * numbers.nbytes
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == np.sort(numbers).tobytes()


@pytest.mark.parametrize("count", [18 * MIB // 8, 5 * MIB])
def test_sort_with_many_processors_gives_each_a_thread(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    threads: set[int] = set()
    real = NumberOrdering.sort

    def note_thread(self: NumberOrdering, *arguments: Any) -> Any:
        threads.add(threading.get_ident())
        return real(self, *arguments)

    monkeypatch.setattr(NumberOrdering, "sort", note_thread)
    numbers = make_file(tmp_path / "data", count)
    with (
        umappy.Pager(memory=32 * MIB, fillers=2, evictors=1) as pager,
        umappy.umap(tmp_path / "data", mode="r+", pager=pager, page_size=16 * KIB) as region,
    ):
        umappy.sort(np.frombuffer(region, np.int64))
    assert len(threads) >= 6
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == np.sort(numbers).tobytes()


def test_sort_of_more_than_one_merge_can_take_adds_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = merge.merge_runs

    def count_runs(*args: Any, **options: Any) -> Any:
        calls.append(sum(len(group) for group in args[3]))
        return real(*args, **options)

    monkeypatch.setattr(job, "merge_runs", count_runs)
    numbers = make_file(tmp_path / "data", 8 * MIB // 8)
    with (
        umappy.Pager(memory=896 * KIB, fillers=1, evictors=1) as pager,
        umappy.umap(tmp_path / "data", mode="r+", pager=pager, page_size=4096) as region,
    ):
        umappy.sort(np.frombuffer(region, np.int64))
        region.flush()
        written = pager.stats().bytes_written
    assert len(calls) == 2
    assert calls[1] < calls[0]
    assert 2.95 * numbers.nbytes <= written <= 3.2 * numbers.nbytes
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == np.sort(numbers).tobytes()


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_sort_of_few_values_sorts_them_once_and_copies_them_then(
    distinct: int, pager: umappy.Pager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.random.default_rng(2).integers(0, distinct, 4 * MIB)
    numbers.tofile(tmp_path / "data")
    sorted_bytes: list[int] = []
    real = NumberOrdering.sort

    def count_bytes(self: NumberOrdering, buffer: Any, space: Any) -> Any:
        sorted_bytes.append(len(buffer))
        return real(self, buffer, space)

    monkeypatch.setattr(NumberOrdering, "sort", count_bytes)
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        umappy.sort(np.frombuffer(region, np.int64))
    assert sum(sorted_bytes) == numbers.nbytes
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == np.sort(numbers).tobytes()


def test_sort_of_records_sorts_by_their_key(pager: umappy.Pager, tmp_path: Path) -> None:
    dtype = np.dtype([("key", "S10"), ("value", "S90")])
    records = np.frombuffer(np.random.default_rng(3).bytes(100 * 300_000), dtype)
    records.tofile(tmp_path / "data")
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        umappy.sort(np.frombuffer(region, dtype), order="key")
    want = records[np.argsort(records["key"], kind="stable")]
    assert np.fromfile(tmp_path / "data", dtype).tobytes() == want.tobytes()


def test_sort_with_out_leaves_the_input_as_it_was(pager: umappy.Pager, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "in", 3 * MIB)
    out_store = umappy.FileStore(tmp_path / "out", "w+", size=numbers.nbytes)
    with (
        umappy.umap(tmp_path / "in", pager=pager) as source,
        umappy.umap(out_store, pager=pager, page_size=4096) as target,
    ):
        out = np.frombuffer(target, np.int64)
        assert umappy.sort(np.frombuffer(source, np.int64), out=out) is out
        del out
    assert np.fromfile(tmp_path / "in", np.int64).tobytes() == numbers.tobytes()
    assert np.fromfile(tmp_path / "out", np.int64).tobytes() == np.sort(numbers).tobytes()


@pytest.mark.parametrize("dtype", ["i8", "S24"])
def test_sort_into_pages_larger_than_a_chunk_gives_the_sorted_file(dtype: str, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "data", 3 * MIB)
    with (
        umappy.Pager(memory=8 * MIB, fillers=2, evictors=1) as pager,
        umappy.umap(tmp_path / "data", mode="r+", pager=pager, page_size=128 * KIB) as region,
    ):
        umappy.sort(np.frombuffer(region, dtype, count=(3 * MIB - 100) // 3, offset=80))
    end = 80 + (3 * MIB - 100) // 3 * np.dtype(dtype).itemsize
    want = numbers.tobytes()[:80] + np.sort(numbers.view(np.uint8)[80:end].view(dtype)).tobytes()
    assert (tmp_path / "data").read_bytes() == want + numbers.tobytes()[end:]


def test_sort_into_an_array_outside_any_region_uses_the_inputs_pager(pager: umappy.Pager, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "in", 2 * MIB)
    out = np.empty_like(numbers)
    with umappy.umap(tmp_path / "in", pager=pager) as source:
        umappy.sort(np.frombuffer(source, np.int64), out=out, scratch_dir=str(tmp_path))
        assert pager.stats().bytes_written >= 0.9 * numbers.nbytes  # scratch
    assert out.tobytes() == np.sort(numbers).tobytes()


def test_sort_of_an_ordinary_array_makes_a_pager_of_its_own() -> None:
    numbers = np.random.default_rng(4).standard_normal(MIB)
    want = np.sort(numbers)
    umappy.sort(numbers, memory="4MiB")
    assert numbers.tobytes() == want.tobytes()


def test_sort_of_part_of_a_region_leaves_the_rest(pager: umappy.Pager, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "data", 2 * MIB)
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        umappy.sort(np.frombuffer(region, np.int64)[12345:-54321])
    numbers[12345:-54321].sort()
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == numbers.tobytes()


def test_sort_of_an_array_off_its_alignment_sorts_it(pager: umappy.Pager, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "numbers", 2 * MIB)
    (tmp_path / "data").write_bytes(b"abc" + numbers.tobytes() + b"de")
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        umappy.sort(np.frombuffer(region, np.int64, len(numbers), 3))
    assert (tmp_path / "data").read_bytes() == b"abc" + np.sort(numbers).tobytes() + b"de"


def test_sort_of_what_was_written_and_not_flushed_sorts_that(pager: umappy.Pager, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "data", 2 * MIB)
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        a = np.frombuffer(region, np.int64)
        a[::5000] = numbers[::5000] = np.arange(len(numbers[::5000]))
        umappy.sort(a)
        assert a[: MIB // 4].tobytes() == np.sort(numbers)[: MIB // 4].tobytes()
        del a
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == np.sort(numbers).tobytes()


def test_sort_goes_past_memory(tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "data", 8 * MIB)
    with (
        umappy.Pager(memory=16 * MIB) as pager,
        umappy.umap(tmp_path / "data", mode="r+", pager=pager, page_size=4096) as region,
    ):
        umappy.sort(np.frombuffer(region, np.int64))
        stats = pager.stats()
    assert stats.fills + stats.prefetches < numbers.nbytes // 4096 // 8  # where partitions meet


@pytest.mark.parametrize("count", [0, 1])
def test_sort_of_nothing_to_sort_copies_to_out(count: int) -> None:
    a, out = np.arange(7, 7 + count), np.zeros(count, np.int64)
    assert umappy.sort(a, out=out) is out
    assert out.tolist() == a.tolist()


def test_sort_gives_its_memory_back(pager: umappy.Pager, tmp_path: Path) -> None:
    make_file(tmp_path / "data", 2 * MIB)
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        umappy.sort(np.frombuffer(region, np.int64))
        region.evict()
        assert pager.stats().resident == 0
        assert pager.stats().regions == 1
        assert pager.stats().used < 2 * MIB


# Measured in a process of its own: the high-water mark of its resident memory.
PEAK = """
import sys, numpy as np, umappy
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
with umappy.Pager(memory=int(sys.argv[2])) as pager:
    with umappy.umap(sys.argv[1], mode="r+", pager=pager) as region:
        a = np.frombuffer(region, sys.argv[3])
        umappy.sort(a[:1000].copy())
        before = status("VmRSS")
        umappy.sort(a)
        print(status("VmHWM") - before, pager.stats().peak_used)
        del a
"""


@pytest.mark.parametrize("dtype", ["i8", "S20"])
def test_sort_stays_within_the_budget(dtype: str, tmp_path: Path) -> None:
    make_file(tmp_path / "data", 160 * MIB // 8 // 5 * 5)
    budget = 32 * MIB
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "data"), str(budget), dtype],
        check=True, capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    peak, used = map(int, done.stdout.split())
    assert used <= budget
    assert peak <= budget + 8 * MIB  # stacks of the threads, the interpreter's own


def test_sort_progress_counts_up_to_the_total(pager: umappy.Pager, tmp_path: Path) -> None:
    numbers = make_file(tmp_path / "data", 4 * MIB)
    seen: list[tuple[int, int]] = []
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        umappy.sort(np.frombuffer(region, np.int64), progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (2 * numbers.nbytes, 2 * numbers.nbytes)


def test_sort_progress_true_shows_a_bar_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    umappy.sort(np.arange(100_000)[::-1].copy(), progress=True)
    umappy.sort(np.arange(100_000)[::-1].copy())
    assert capfd.readouterr().err.count("sorting") >= 1


# Arguments


@pytest.mark.parametrize(
    ("a", "error", "words"),
    [
        ([3, 1], TypeError, "list"),
        (np.array([3, "a"], object), TypeError, "point to Python's memory"),
        (np.zeros(2, [("x", object)]), TypeError, "fixed width"),
        (np.zeros((2, 2)), ValueError, r"reshape\(-1\)"),
        (np.arange(10)[::2], ValueError, "contiguous"),
        (np.arange(10)[::-1], ValueError, "contiguous"),
        (np.ma.array([1, 2]), TypeError, "masked"),
        (np.frombuffer(b"12345678", np.int8), ValueError, "read-only"),
    ],
    ids=lambda value: None if isinstance(value, np.ndarray | list) else getattr(value, "__name__", value),
)
def test_sort_of_what_it_cannot_sort_names_the_remedy(a: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        umappy.sort(a)


def test_sort_of_an_unknown_field_is_numpys_error() -> None:
    with pytest.raises(ValueError, match="unknown field"):
        umappy.sort(np.zeros(5, [("x", "i4")]), order="y")
    with pytest.raises(ValueError, match="order"):
        umappy.sort(np.zeros(5), order="y")


@pytest.mark.parametrize("out", [np.zeros(5, "i4"), np.zeros(4), np.zeros((5, 1))])
def test_sort_into_an_array_that_does_not_fit_raises_value_error(out: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="out has"):
        umappy.sort(np.zeros(5), out=out)


def test_sort_into_an_array_that_overlaps_raises_value_error() -> None:
    a = np.zeros(10)
    with pytest.raises(ValueError, match="overlaps"):
        umappy.sort(a[:5], out=a[3:8])


def test_sort_with_more_memory_than_the_pager_raises_budget_error(pager: umappy.Pager, tmp_path: Path) -> None:
    make_file(tmp_path / "data", MIB)
    with (
        umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region,
        pytest.raises(umappy.BudgetError, match=r"16 MiB.*8 MiB"),
    ):
        umappy.sort(np.frombuffer(region, np.int64), memory="16MiB")


def test_sort_with_too_little_memory_names_what_is_needed(pager: umappy.Pager, tmp_path: Path) -> None:
    dtype = np.dtype("S100000")
    (tmp_path / "data").write_bytes(bytes(dtype.itemsize * 200))
    with (
        umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region,
        pytest.raises(umappy.BudgetError, match=r"give about [\d.]+ MiB"),
    ):
        umappy.sort(np.frombuffer(region, dtype), memory="1MiB")


# Failures


INTERRUPTED = """
import os, signal, sys, threading, time, numpy as np, umappy
path, out_path, fraction = sys.argv[1], sys.argv[2], float(sys.argv[3])
pager = umappy.Pager(memory="8MiB", fillers=2, evictors=1)
region = umappy.umap(path, mode="r+", pager=pager)
a = np.frombuffer(region, np.int64)
options = {}
if out_path:
    target = umappy.umap(umappy.FileStore(out_path, "w+", size=a.nbytes), pager=pager)
    options["out"] = np.frombuffer(target, np.int64)
sent = []
def interrupt(done, total):
    if done >= fraction * total and not sent:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
try:
    umappy.sort(a, progress=interrupt, **options)
except KeyboardInterrupt as error:
    print(f"seconds={time.monotonic() - sent[0]:.3f}")
    print("threads=", sum(thread.name.startswith("umappy-sort") for thread in threading.enumerate()))
    print("scratch=", sum("(deleted)" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                          if os.path.lexists(f"/proc/self/fd/{fd}")))
    print("regions=", pager.stats().regions)
    print("note=", error.__notes__[0])
    region.flush()
    sys.exit(0)
sys.exit("was not interrupted")
"""


def interrupt(path: Path, out: str, fraction: float) -> str:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(path), out, str(fraction)],
        capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("out", "fraction", "note", "whole"),
    [
        ("", 0.2, "it is as it was", True),
        ("", 0.7, "mixture", False),
        ("out", 0.2, "neither a nor out was changed", True),
        ("out", 0.7, "a is as it was; out is written in part", True),
    ],
)
def test_sort_interrupted_ends_at_once_and_says_what_is_left(
    out: str, fraction: float, note: str, whole: bool, tmp_path: Path
) -> None:
    numbers = make_file(tmp_path / "data", 8 * MIB)
    said = interrupt(tmp_path / "data", str(tmp_path / out) if out else "", fraction)
    assert note in said
    assert float(said.split("seconds=")[1].split()[0]) < 2
    assert "threads= 0\n" in said
    assert "scratch= 0\n" in said
    assert f"regions= {2 if out else 1}\n" in said
    assert (np.fromfile(tmp_path / "data", np.int64).tobytes() == numbers.tobytes()) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"data", *([out] if out else [])}


def test_sort_error_in_progress_stops_it_and_is_raised(pager: umappy.Pager, tmp_path: Path) -> None:
    make_file(tmp_path / "data", 4 * MIB)

    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError

    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        with pytest.raises(ZeroDivisionError) as caught:
            umappy.sort(np.frombuffer(region, np.int64), progress=fail)
        assert "umappy.sort" in caught.value.__notes__[0]
        assert pager.stats().regions == 1
    assert region.closed  # although the error lives


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_sort_without_room_for_scratch_raises_before_it_begins(
    pager: umappy.Pager, small_disk: Path, tmp_path: Path
) -> None:
    numbers = make_file(tmp_path / "data", 3 * MIB)
    with (
        umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region,
        pytest.raises(umappy.StoreFullError, match="24 MiB and 8 MiB are free"),
    ):
        umappy.sort(np.frombuffer(region, np.int64), scratch_dir=str(small_disk))
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == numbers.tobytes()


def test_sort_on_a_disk_that_fills_up_raises_and_leaves_the_input(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = make_file(tmp_path / "data", 3 * MIB)
    monkeypatch.setattr(scratch, "free_bytes", lambda folder: 1 << 40)  # somebody takes it meanwhile
    started = time.monotonic()
    with (
        umappy.Pager(memory=8 * MIB, fillers=2, evictors=1, timeout_seconds=3) as pager,
        umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region,
    ):
        with pytest.raises(umappy.StoreFullError) as caught:
            umappy.sort(np.frombuffer(region, np.int64), scratch_dir=str(small_disk))
        assert "as it was" in caught.value.__notes__[0]
        assert pager.stats().regions == 1
    assert region.closed  # although the error lives
    assert time.monotonic() - started < 20
    assert list(small_disk.iterdir()) == []
    assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize == 8 * MIB
    assert np.fromfile(tmp_path / "data", np.int64).tobytes() == numbers.tobytes()


def test_sort_of_a_store_that_cannot_be_read_raises_and_leaves_it(
    pager: umappy.Pager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = make_file(tmp_path / "data", 4 * MIB)
    with umappy.umap(tmp_path / "data", mode="r+", pager=pager) as region:
        a = np.frombuffer(region, np.int64)
        real = runs.make_runs

        def truncate(*args: Any, **options: Any) -> Any:
            os.truncate(tmp_path / "data", numbers.nbytes // 2)
            return real(*args, **options)

        monkeypatch.setattr(job, "make_runs", truncate)
        with pytest.raises(umappy.StoreTruncatedError) as caught:
            umappy.sort(a)
        assert "as it was" in "".join(caught.value.__notes__)
        os.truncate(tmp_path / "data", numbers.nbytes)
        del a
    assert region.closed
    half = np.fromfile(tmp_path / "data", np.int64)[: len(numbers) // 2]
    assert half.tobytes() == numbers[: len(numbers) // 2].tobytes()

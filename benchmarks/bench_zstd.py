"""Compressed files: read in order and at random, and written to. What each takes of the device is among the values.

All compress with zstd at level 3; in which blocks, rows/zstd_data.py tells. "FileStore, raw" is umappy on the same data
uncompressed: what compression costs, or saves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.place import Place
from harness.rounds import Run
from harness.sample import Sample
from rows import zstd_random, zstd_rewrite
from rows.zstd_data import KINDS, DataFile
from rows.zstd_sequential import sum_peer, sum_umappy

FORMS = {"umappy": "umappy.zst", "FileStore, raw": "raw", "blosc2": "blosc2", "zarr": "zarr", "h5py": "h5"}
OURS = ("umappy", "FileStore, raw")
REWRITERS = ("umappy", "blosc2", "h5py")
# Times the scale's size. Files have half of that: of "noise" five, which save nothing, and a copy that is written to;
# of "3x" the raw one and four compressed.
FILES = 4.5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS if metafunc.config.getoption("--scale") == "full" else KINDS[:1])


@pytest.fixture(scope="module")
def rooms(bench: Bench) -> Iterator[dict[str, Place]]:
    """By device."""
    with contextlib.ExitStack() as stack:
        yield {place.name: stack.enter_context(place.open_room(int(FILES * bench.size))) for place in bench.places}


@pytest.fixture
def data(bench: Bench, rooms: dict[str, Place], device: str, kind: str) -> DataFile:
    return DataFile(rooms[device], kind, bench.size // 2)


def measure_space(run: Run, path: str) -> Run:
    """Adds to each sample the bytes that the file or folder takes on its device after it."""

    def measured() -> Sample:
        sample = run()
        return dataclasses.replace(sample, values=sample.values | {"space": float(count_bytes(path))})

    return measured


def count_bytes(path: str) -> int:
    paths = [path, *(os.path.join(base, name) for base, _, names in os.walk(path) for name in names)]
    return sum(512 * os.lstat(each).st_blocks for each in paths)


def prepare_readers(
    bench: Bench,
    data: DataFile,
    ours: Callable[..., dict[str, float]],
    peers: Callable[..., dict[str, float]],
    total: float,
    **common: object,
) -> dict[str, Run]:
    contenders = {}
    for name, form in FORMS.items():
        path = data.find(form)
        own = {"memory": bench.memory} if name in OURS else {"form": form}
        function = ours if name in OURS else peers
        run = bench.prepare(function, data.place, expected={"sum": total}, path=path, **own, **common)
        contenders[name] = measure_space(run, path)
    return contenders


@pytest.mark.parametrize("contender", FORMS)
def bench_sequential_sum_of_compressed(contest: Contest, bench: Bench, data: DataFile, contender: str) -> None:
    contest.run(
        "sequential sum of a compressed file",
        contender,
        lambda: prepare_readers(bench, data, sum_umappy, sum_peer, data.sum),
        place=data.place,
        axis={"data": data.kind},
        nbytes=data.size,
    )


@pytest.mark.parametrize("contender", FORMS)
@pytest.mark.device("fast")
def bench_random_reads_of_compressed(contest: Contest, bench: Bench, data: DataFile, contender: str) -> None:
    reads = max(1, bench.reads // 10)

    def prepare() -> dict[str, Run]:
        total = zstd_random.compute_sum(data.kind, data.size, reads)
        return prepare_readers(
            bench, data, zstd_random.read_umappy, zstd_random.read_peer, total, size=data.size, reads=reads
        )

    contest.run(
        "random 64 KiB reads of a compressed file",
        contender,
        prepare,
        place=data.place,
        axis={"data": data.kind},
        items=reads,
    )


@pytest.mark.parametrize("contender", REWRITERS)
@pytest.mark.device("fast")
def bench_random_writes_to_compressed(contest: Contest, bench: Bench, data: DataFile, contender: str) -> None:
    writes = max(1, bench.reads // 10)

    def prepare() -> dict[str, Run]:
        return {
            name: zstd_rewrite.prepare_writer(bench, data, FORMS[name], writes, measure_space) for name in REWRITERS
        }

    contest.run(
        "random 64 KiB writes to a compressed file",
        contender,
        prepare,
        place=data.place,
        axis={"data": data.kind},
        items=writes,
        rounds=1 if bench.rounds < 5 else 3,
        note=f"with a flush to the disk after each {zstd_rewrite.FLUSH_EVERY}, and in the end",
    )


@pytest.mark.parametrize("contender", ["umappy"])
@pytest.mark.device("fast")
def bench_space_after_rewrites(contest: Contest, bench: Bench, data: DataFile, contender: str) -> None:
    size = data.size // 8
    path = os.path.join(data.place.folder, "rewritten.zst")
    contest.run(
        f"compressed file written {zstd_rewrite.REWRITES + 1} times over",
        contender,
        lambda: {"umappy": bench.prepare(zstd_rewrite.rewrite_all, data.place, kind=data.kind, path=path, size=size)},
        place=data.place,
        axis={"data": data.kind},
        nbytes=size * (zstd_rewrite.REWRITES + 1),
        rounds=1,
        note="values: bytes allocated in the end, and bytes that the same takes packed",
    )

"""Random int64 sorted, from what fits in memory to several times that; the result is on the disk in the end.

umappy and numpy sort a file in place. DuckDB and Polars read a file of Parquet and write another: peers/parquet.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.place import Place
from harness.rounds import Run
from harness.sample import Sample
from peers import parquet
from peers.duckdb_sort import sort_duckdb
from peers.numpy_sort import sort_resident
from peers.polars_sort import sort_polars
from rows.sort import SEED, check_after, sort_memmap, sort_umappy
from rows.zstd_rewrite import on_a_copy
from umappy.cli.data import check_file, write_random

IN_PLACE = {"umappy": sort_umappy, "np.memmap": sort_memmap, "numpy in RAM": sort_resident}
TABLES = {"DuckDB": sort_duckdb, "Polars": sort_polars}
# The numbers twice, a table of them, a sorted one, and what its maker spills.
FILES = 4.75
PATIENCE_SECONDS = 30
PATIENCE_SECONDS_A_GIB = 120


@pytest.fixture(scope="module")
def room(bench: Bench) -> Iterator[Place]:
    with bench.places[0].open_room(int(FILES * bench.size)) as place:
        yield place


def prepare(bench: Bench, room: Place, size: int) -> dict[str, Run]:
    source, path, table = (os.path.join(room.folder, name) for name in ("numbers", "to-sort", "numbers.parquet"))
    before = write_random(source, size, SEED)
    parquet.make(source, table)
    patience = PATIENCE_SECONDS + PATIENCE_SECONDS_A_GIB * size / (1 << 30)

    def make(function: Callable[..., dict[str, float]], **arguments: object) -> Run:
        return bench.prepare(function, room, timeout_seconds=patience, **arguments)

    def make_in_place(name: str) -> Run:
        memory = {"memory": bench.memory} if name == "umappy" else {}
        run = make(IN_PLACE[name], path=path, **memory)
        return on_a_copy(check_after(run, path, check_file, before), source, path)

    def make_table(name: str) -> Run:
        folder = os.path.join(room.folder, name)
        out = os.path.join(folder, "sorted.parquet")
        run = make(TABLES[name], path=table, out=out, limit=bench.limit)
        return inside(check_after(run, out, parquet.check, before), folder)

    return {name: make_in_place(name) for name in IN_PLACE} | {name: make_table(name) for name in TABLES}


def inside(run: Run, folder: str) -> Run:
    """Each run finds the folder empty, and nothing of it stays."""

    def held() -> Sample:
        os.mkdir(folder)
        try:
            return run()
        finally:
            shutil.rmtree(folder)

    return held


@pytest.mark.parametrize("contender", [*IN_PLACE, *TABLES])
@pytest.mark.axis("part", (1 / 16, 1 / 4, 1 / 2, 3 / 4, 1))
def bench_sort_by_size(contest: Contest, bench: Bench, room: Place, contender: str, part: float) -> None:
    size = int(bench.size * part)
    contest.run(
        "sort",
        contender,
        lambda: prepare(bench, room, size),
        place=room,
        axis={"size_gib": size / (1 << 30)},
        nbytes=size,
        rounds=1 if bench.rounds < 5 else 3,
    )

"""Pages of a compressed file written anew at random, with a flush after each 1,000; and the space that rewriting takes.

umappy writes in two ways: as any program does to an array, which reads each page first, and by Region.overwrite, which
like the peers' calls takes whole pages and reads none. blosc2 and h5py flush to the kernel, umappy to the disk: the
peers' files are synced as well, by os.sync.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs, item_side, value
from harness.result import Result, Side, Target, compare, divide
from harness.rounds import Run, alternate
from harness.sample import Sample
from rows.zstd_data import KINDS, LEVEL, PAGE, DataFile, compute, open_peer, reduce
from umappy.sizes import format_size
from umappy.stores import ZstdStore
from umappy.stores._zstd_pack import ZstdPack

SEED = 4
COUNT = PAGE // 8
FLUSH_EVERY = 1000
REWRITES = 10


def pick(size: int, writes: int) -> NDArray[np.int64]:
    return np.random.default_rng(SEED).integers(0, size // PAGE, writes)


def make_pages(kind: str) -> NDArray[np.uint64]:
    """Some to write in turn: making them is not what is measured."""
    return compute(kind, 0, 64 * COUNT, version=1).reshape(64, COUNT)


def write_umappy(
    meter: Meter, kind: str, path: str, size: int, writes: int, memory: int, whole: bool
) -> dict[str, float]:
    pages = make_pages(kind)
    with umappy.Pager(memory) as pager, umappy.umap(path, mode="r+", pager=pager) as region:
        region.advise("random")
        a = np.frombuffer(region, np.uint64)
        with meter:
            for turn, page in enumerate(pick(size, writes)):
                if whole:
                    region.overwrite(page * PAGE, pages[turn % 64])
                else:
                    a[page * COUNT : (page + 1) * COUNT] = pages[turn % 64]
                if (turn + 1) % FLUSH_EVERY == 0:
                    region.flush()
            region.flush()
        last = reduce(a[page * COUNT : (page + 1) * COUNT])
        del a
    return {"last": last}


def write_peer(meter: Meter, form: str, kind: str, path: str, size: int, writes: int) -> dict[str, float]:
    pages, array = make_pages(kind), open_peer(form, path, "r+")

    def flush() -> None:
        if form == "h5":
            array.file.flush()
        os.sync()

    with meter:
        for turn, page in enumerate(pick(size, writes)):
            array[int(page) * COUNT : (int(page) + 1) * COUNT] = pages[turn % 64]
            if (turn + 1) % FLUSH_EVERY == 0:
                flush()
        flush()
    return {"last": reduce(array[int(page) * COUNT : (int(page) + 1) * COUNT])}


def rewrite_all(meter: Meter, kind: str, path: str, size: int) -> dict[str, float]:
    """Everything, REWRITES times, with a flush after each; then packs it to see what that takes."""
    with ZstdStore(path, "x", size=size, page_size=PAGE, level=LEVEL) as store:
        with meter:
            for version in range(1, REWRITES + 2):
                for start in range(0, size // 8, 16 * COUNT):
                    store.write(8 * start, compute(kind, start, min(start + 16 * COUNT, size // 8), version))
                store.flush()
        allocated = store.info().allocated
        with ZstdPack(f"{path}.packed", page_size=PAGE, level=LEVEL, dictionary=b"") as pack:
            pack.write_store(store, 0, size)
    packed = os.path.getsize(f"{path}.packed")
    os.unlink(path)
    os.unlink(f"{path}.packed")
    return {"allocated": allocated, "packed": packed}


def on_a_copy(run: Run, source: str, path: str) -> Run:
    """Each run changes its own copy of the file."""

    def copied() -> Sample:
        try:
            if os.path.isdir(source):
                shutil.copytree(source, path)
            else:
                shutil.copyfile(source, path)
            return run()
        finally:
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)

    return copied


def prepare_writer(
    bench: Bench,
    data: DataFile,
    form: str,
    writes: int,
    watch: Callable[[Run, str], Run] = lambda run, path: run,
    whole: bool = False,
) -> Run:
    """Returns who writes to copies of a form of `data`; `watch` gets the run and the path of the copy.

    `whole`: umappy writes by Region.overwrite.
    """
    path = os.path.join(data.place.folder, f"copy.{form}")
    expected = {"last": float(reduce(make_pages(data.kind)[(writes - 1) % 64]))}
    common = {"kind": data.kind, "path": path, "size": data.size, "writes": writes}
    if form == "umappy.zst":
        run = bench.prepare(write_umappy, data.place, expected=expected, memory=bench.memory, whole=whole, **common)
    else:
        run = bench.prepare(write_peer, data.place, expected=expected, form=form, **common)
    return on_a_copy(watch(run, path), data.find(form), path)


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    return [result for kind in KINDS for result in (*measure_writes(bench, kind), measure_space(bench, kind))]


def measure_writes(bench: Bench, kind: str) -> list[Result]:
    assert bench.fast is not None
    data = DataFile(bench.fast, kind, bench.size)
    writes = max(1, bench.reads // 4)
    contenders = {
        "umappy": prepare_writer(bench, data, "umappy.zst", writes),
        "overwrite": prepare_writer(bench, data, "umappy.zst", writes, whole=True),
        "blosc2": prepare_writer(bench, data, "blosc2", writes),
        "h5py": prepare_writer(bench, data, "h5", writes),
    }
    rounds = alternate(contenders, bench.rounds)
    notes = describe_costs(rounds, *contenders)
    return [
        compare(
            f"{writes} random page writes, {how}, {kind}",
            "fast",
            rounds,
            item_side(peer, writes),
            item_side(ours, writes),
            divide,
            Target("at least", 2),
            notes=notes if (ours, peer) == ("umappy", "blosc2") else (),
        )
        for ours, how in (("umappy", f"flush each {FLUSH_EVERY}"), ("overwrite", "Region.overwrite"))
        for peer in ("blosc2", "h5py")
    ]


def measure_space(bench: Bench, kind: str) -> Result:
    assert bench.fast is not None
    path = os.path.join(bench.fast.folder, "rewritten.zst")
    size = bench.size // 4
    rounds = alternate({"umappy": bench.prepare(rewrite_all, kind=kind, path=path, size=size)}, 1)
    return compare(
        f"space after {REWRITES} rewrites, {kind}",
        "fast",
        rounds,
        Side("umappy", value("packed"), lambda count: format_size(int(count))),
        Side("umappy", value("allocated"), lambda count: format_size(int(count))),
        lambda packed, allocated: allocated / packed,
        Target("at most", 1.5),
        against="packed",
    )

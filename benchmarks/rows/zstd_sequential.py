"""The sum of a cold compressed file, in order: against the raw file, blosc2, zarr, and zstd's own benchmark.

The row "pread + zstd" is the limit of that last one: a process a core that knows beforehand where the
frames lie, reads them past the page cache, decompresses them to one place again and again, and adds them up.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import re
import subprocess

import numpy as np
import zstandard
from numpy.typing import NDArray

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs, rate_side, value
from harness.place import Place
from harness.result import Result, Side, Target, compare, divide_rates
from harness.rounds import alternate
from rows.zstd_data import KINDS, LEVEL, MODULUS, PAGE, THREADS, DataFile, open_peer, reduce
from rows.zstd_random import find_frames

SLICE = 8 << 20
FRAMES = 32
"""Read at a time by who knows where they lie."""


def sum_umappy(meter: Meter, path: str, memory: int) -> dict[str, float]:
    with umappy.Pager(memory) as pager, umappy.umap(path, pager=pager) as region:
        a = np.frombuffer(region, np.uint64)
        with meter:
            total = a.sum()
        peak = pager.stats().peak_used
        del a
    return {"sum": int(total) % MODULUS, "peak_used": peak}


def sum_peer(meter: Meter, form: str, path: str) -> dict[str, float]:
    array = open_peer(form, path)
    step, total = SLICE // 8, 0
    with meter:
        for start in range(0, array.shape[0], step):
            total += reduce(array[start : start + step])
    return {"sum": total % MODULUS}


def decompress_by_tool(meter: Meter, path: str) -> dict[str, float]:
    """What zstd's own benchmark decompresses on all cores at once, in blocks of our page size."""
    command = ["zstd", "-q", f"-b{LEVEL}", "-i2", f"-B{PAGE}", path]
    with meter:
        tools = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(THREADS)]
        outputs = [tool.communicate()[0] for tool in tools]
    if failed := [tool.returncode for tool in tools if tool.returncode]:
        raise subprocess.CalledProcessError(failed[0], command)
    decompressed = [re.findall(r"([0-9.]+) MB/s", output)[1] for output in outputs]
    return {"rate": sum(map(float, decompressed)) * 1e6}


def sum_share(path: str, frames: NDArray[np.int64]) -> int:
    decompressor, total = zstandard.ZstdDecompressor(), 0
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    room = FRAMES * (PAGE + (PAGE >> 8) + 64) + 8192
    with mmap.mmap(-1, room) as memory, memoryview(memory) as buffer:
        for first in range(0, len(frames), FRAMES):
            some = frames[first : first + FRAMES]
            start = int(some[0, 0]) & ~4095
            end = int(some[-1].sum())
            os.preadv(file, [buffer[: (end - start + 4095) & ~4095]], start)
            for offset, length in some.tolist():
                page = decompressor.decompress(buffer[offset - start : offset - start + length], PAGE)
                total += reduce(np.frombuffer(page, np.uint64))
    os.close(file)
    return total % MODULUS


def sum_frames(meter: Meter, path: str) -> dict[str, float]:
    shares = np.array_split(find_frames(path), THREADS)
    with multiprocessing.get_context("fork").Pool(THREADS) as pool:
        pool.map(abs, range(THREADS))  # they are there
        with meter:
            sums = pool.starmap(sum_share, [(path, share) for share in shares], chunksize=1)
    return {"sum": sum(sums) % MODULUS}


def measure(bench: Bench) -> list[Result]:
    return [result for place in bench.places for kind in KINDS for result in measure_kind(bench, place, kind)]


def measure_kind(bench: Bench, place: Place, kind: str) -> list[Result]:
    data = DataFile(place, kind, bench.size)
    expected = {"sum": data.sum}
    sample = DataFile(place, kind, min(bench.size, 32 << 20))  # the tool holds it several times
    contenders = {
        "umappy": bench.prepare(
            sum_umappy, place, expected=expected, path=data.find("umappy.zst"), memory=bench.memory
        ),
        "raw": bench.prepare(sum_umappy, place, expected=expected, path=data.find("raw"), memory=bench.memory),
        "zstd -b": bench.prepare(decompress_by_tool, path=sample.find("raw")),
    }
    is_fast = place.name == "fast"
    if is_fast:
        contenders["pread + zstd"] = bench.prepare(sum_frames, place, expected=expected, path=data.find("umappy.zst"))
        for peer in ("blosc2", "zarr"):
            contenders[peer] = bench.prepare(sum_peer, place, expected=expected, form=peer, path=data.find(peer))
    rounds = alternate(contenders, bench.rounds)
    ours = rate_side("umappy", bench.size)
    work = f"sequential sum, {kind}"
    results = [
        compare(
            work,
            place.name,
            rounds,
            rate_side("raw", bench.size),
            ours,
            divide_rates,
            None if is_fast else Target("at least", 1.0),
            against="FileStore, raw",
            notes=describe_costs(rounds, *contenders),
        ),
        compare(
            work,
            place.name,
            rounds,
            Side("zstd -b", value("rate"), ours.format),
            ours,
            divide_rates,
            Target("at least", 0.8) if is_fast and kind == "3x" else None,
            against=f"zstd -b, {THREADS} cores",
        ),
    ]
    if is_fast:
        results.append(
            compare(
                f"{work}: pread + zstd",
                place.name,
                rounds,
                Side("zstd -b", value("rate"), ours.format),
                rate_side("pread + zstd", bench.size),
                divide_rates,
                None,
                against=f"zstd -b, {THREADS} cores",
            )
        )
    for peer in ("blosc2", "zarr") if is_fast else ():
        target = Target("at least", 1.5)
        results.append(compare(work, place.name, rounds, rate_side(peer, bench.size), ours, divide_rates, target))
    return results

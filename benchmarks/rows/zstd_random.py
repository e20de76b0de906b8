"""Reads of 64 KiB at random places of a cold compressed file.

The row without a target is their limit: one pread of the page's frame and its decompression, by a program that knows
beforehand where the frames lie.
"""

from __future__ import annotations

import os

import numpy as np
import zstandard
from numpy.typing import NDArray

import umappy
from harness.bench import Bench
from harness.child import Meter
from harness.figures import describe_costs, item_side
from harness.result import Result, Target, compare, divide
from harness.rounds import alternate
from rows.zstd_data import KINDS, MODULUS, PAGE, DataFile, compute, open_peer, reduce

SEED = 3
PEERS = ("blosc2", "zarr")
COUNT = PAGE // 8


def pick(size: int, reads: int) -> NDArray[np.int64]:
    """Where they begin, in elements: at pages, which are the blocks of blosc2, too."""
    return COUNT * np.random.default_rng(SEED).integers(0, size // PAGE, reads)


def compute_sum(kind: str, size: int, reads: int) -> float:
    """What reading them must give."""
    return float(sum(reduce(compute(kind, int(s), int(s) + COUNT)) for s in pick(size, reads)) % MODULUS)


def read_umappy(meter: Meter, path: str, size: int, reads: int, memory: int) -> dict[str, float]:
    starts, total = pick(size, reads), 0
    with umappy.Pager(memory) as pager, umappy.umap(path, pager=pager, page_size=PAGE) as region:
        region.advise("random")
        a = np.frombuffer(region, np.uint64)
        with meter:
            for start in starts:
                total += reduce(a[start : start + COUNT])
        del a
    return {"sum": total % MODULUS}


def read_peer(meter: Meter, form: str, path: str, size: int, reads: int) -> dict[str, float]:
    array, starts, total = open_peer(form, path), pick(size, reads), 0
    with meter:
        for start in starts:
            total += reduce(array[int(start) : int(start) + COUNT])
    return {"sum": total % MODULUS}


def find_frames(path: str) -> NDArray[np.int64]:
    """Returns the offset and length of each page's frame, in bytes, from the seek table of a packed file."""
    with open(path, "rb") as file:
        file.seek(-9, os.SEEK_END)
        count = int.from_bytes(file.read(4), "little")
        entry = 12 if file.read(1)[0] & 0x80 else 8  # with checksums
        file.seek(-9 - count * entry, os.SEEK_END)
        table = np.frombuffer(file.read(count * entry), "<u4").reshape(count, entry // 4).astype(np.int64)
    ends = np.cumsum(table[:, 0])
    frames = np.stack([ends - table[:, 0], table[:, 0]], axis=1)
    return frames[table[:, 1] > 0]  # what is not data decompresses to nothing


def read_frames(meter: Meter, path: str, size: int, reads: int) -> dict[str, float]:
    frames, total = find_frames(path)[pick(size, reads) // COUNT].tolist(), 0
    decompressor = zstandard.ZstdDecompressor()
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    with meter:
        for offset, length in frames:
            page = decompressor.decompress(os.pread(file, length, offset), PAGE)
            total += reduce(np.frombuffer(page, np.uint64))
    os.close(file)
    return {"sum": total % MODULUS}


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    results = []
    for kind in KINDS:
        data = DataFile(bench.fast, kind, bench.size)
        reads = max(1, bench.reads // 10)
        expected = {"sum": compute_sum(kind, bench.size, reads)}
        common = {"size": bench.size, "reads": reads}
        contenders = {
            "umappy": bench.prepare(
                read_umappy, bench.fast, expected=expected, path=data.find("umappy.zst"), memory=bench.memory, **common
            ),
        }
        for peer in PEERS:
            contenders[peer] = bench.prepare(
                read_peer, bench.fast, expected=expected, form=peer, path=data.find(peer), **common
            )
        contenders["pread + zstd"] = bench.prepare(
            read_frames, bench.fast, expected=expected, path=data.find("umappy.zst"), **common
        )
        rounds = alternate(contenders, bench.rounds)
        notes = describe_costs(rounds, *contenders)
        results += [
            compare(
                f"{reads} random reads of 64 KiB, {kind}",
                "fast",
                rounds,
                item_side(peer, reads),
                item_side("umappy", reads),
                divide,
                Target("at least", 2) if peer in PEERS else None,
                notes=notes if peer == "blosc2" else (),
            )
            for peer in (*PEERS, "pread + zstd")
        ]
    return results

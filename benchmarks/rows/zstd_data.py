"""What the rows on compression read and write: two kinds of data, and a file of each for umappy and its peers.

"3x" is a table: records of eight elements, one noise, three float64 of a few digits, four from a vocabulary; of "noise"
all are noise. Elements are uint64 that follow from their index; their sum modulo 2**52 is exact in whatever order it
is added, and a float can hold it. All compress with zstd at level 3. Peers get the block sizes that suit them: blosc2
chunks of 1 MiB with blocks of 64 KiB, zarr chunks of 1 MiB, HDF5 chunks of 64 KiB.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.number_file import MULTIPLIER
from harness.place import Place
from peers.arrays import THREADS, open_array
from umappy.stores._zstd_pack import ZstdPack

LEVEL = 3
PAGE = 64 << 10
CHUNK = 1 << 20
WORDS = 60
MODULUS = 1 << 52
KINDS = ("3x", "noise")
BLOCK = 1 << 20
"""Elements that are made at a time."""


def compute(kind: str, start: int, stop: int, version: int = 0) -> NDArray[np.uint64]:
    """The elements from `start` to before `stop`, in one of the versions that they may be overwritten with."""
    places = np.arange(start, stop, dtype=np.uint64)
    noise = hash_each(places + np.uint64(version << 40))
    if kind == "noise":
        return noise
    inside = places % np.uint64(8)
    words = hash_each((places >> np.uint64(3)) + np.uint64(version << 40)) % np.uint64(WORDS)
    digits = (noise >> np.uint64(54)).astype(np.float64).view(np.uint64)
    return np.where(inside < 1, noise, np.where(inside < 4, digits, hash_each(words * np.uint64(8) + inside)))


def hash_each(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = values * MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
    mixed *= MULTIPLIER
    return mixed ^ mixed >> np.uint64(32)


def reduce(block: NDArray[np.uint64]) -> int:
    return int(block.sum(dtype=np.uint64)) % MODULUS


@functools.cache
def compute_sum(kind: str, count: int) -> float:
    return float(sum(reduce(compute(kind, i, min(i + BLOCK, count))) for i in range(0, count, BLOCK)) % MODULUS)


@dataclass(frozen=True)
class DataFile:
    """The same `size` bytes in every form, in a folder of `place`; each form is made at first use."""

    place: Place
    kind: str
    size: int

    @property
    def count(self) -> int:
        return self.size // 8

    @property
    def sum(self) -> float:
        return compute_sum(self.kind, self.count)

    def find(self, form: str) -> str:
        """Returns the path of the form "raw", "umappy.zst", "blosc2", "zarr" or "h5"."""
        path = os.path.join(self.place.folder, f"{self.kind}-{self.size}.{form}")
        if not os.path.exists(path):
            MAKERS[form](self, path)
            os.sync()
        return path

    def blocks(self) -> Any:
        for start in range(0, self.count, BLOCK):
            stop = min(start + BLOCK, self.count)
            yield start, stop, compute(self.kind, start, stop)


def make_raw(data: DataFile, path: str) -> None:
    with open(path, "wb") as file:
        for _, _, block in data.blocks():
            block.tofile(file)


def make_umappy(data: DataFile, path: str) -> None:
    with ZstdPack(path, page_size=PAGE, level=LEVEL, dictionary=b"") as pack:
        for _, _, block in data.blocks():
            pack.write(block)


def make_blosc2(data: DataFile, path: str) -> None:
    import blosc2

    array = blosc2.empty(
        (data.count,),
        np.uint64,
        urlpath=path,
        chunks=(CHUNK // 8,),
        blocks=(PAGE // 8,),
        cparams={
            "codec": blosc2.Codec.ZSTD,
            "clevel": LEVEL,
            "nthreads": THREADS,
            "filters": [blosc2.Filter.NOFILTER],  # shuffling bytes would do this data no good
        },
        contiguous=False,
    )
    for start, stop, block in data.blocks():
        array[start:stop] = block


def make_zarr(data: DataFile, path: str) -> None:
    import zarr

    array = zarr.create_array(
        path,
        shape=(data.count,),
        dtype="uint64",
        chunks=(CHUNK // 8,),
        compressors=zarr.codecs.ZstdCodec(level=LEVEL),
    )
    for start, stop, block in data.blocks():
        array[start:stop] = block


def make_h5(data: DataFile, path: str) -> None:
    import h5py
    import hdf5plugin

    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "x", (data.count,), np.uint64, chunks=(PAGE // 8,), compression=hdf5plugin.Zstd(clevel=LEVEL)
        )
        for start, stop, block in data.blocks():
            array[start:stop] = block


MAKERS = {"raw": make_raw, "umappy.zst": make_umappy, "blosc2": make_blosc2, "zarr": make_zarr, "h5": make_h5}


def open_peer(form: str, path: str, mode: str = "r") -> Any:
    """The array of a peer, on THREADS threads."""
    if form != "h5":
        return open_array(form, path, mode)
    import hdf5plugin  # noqa: F401  (registers zstd)

    return open_array("h5py", path, mode)

"""Libraries of chunked arrays, uncompressed where they can: blosc2, zarr 3, h5py. They read slices, not memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.child import Meter
from harness.number_file import NumberFile, compute_range
from harness.place import Place

FORMS = ("blosc2", "zarr", "h5py")
THREADS = 2
CHUNK = 1 << 20
"""Bytes."""
BLOCK = 64 << 10
SLICE = 8 << 20


def find(place: Place, numbers: NumberFile, form: str) -> str:
    """Returns the path of the numbers in a library's form, made at first use."""
    path = os.path.join(place.folder, f"numbers-{numbers.size}.{form}")
    if not os.path.exists(path):
        array, close = MAKERS[form](path, numbers.count)
        for part in _iterate_slices(numbers.count):
            array[part] = compute_range(part.start, part.stop)
        close()
        os.sync()
    return path


def remove(path: str) -> None:
    """Removes what `find` made; the next `find` makes it anew."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


def _iterate_slices(count: int) -> Iterator[slice]:
    step = SLICE // 8
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _make_blosc2(path: str, count: int) -> tuple[Any, Any]:
    import blosc2

    array = blosc2.empty(
        (count,),
        np.float64,
        urlpath=path,
        chunks=(CHUNK // 8,),
        blocks=(BLOCK // 8,),
        cparams={"clevel": 0, "nthreads": THREADS},
        contiguous=False,
    )
    return array, lambda: None


def _make_zarr(path: str, count: int) -> tuple[Any, Any]:
    import zarr

    array = zarr.create_array(path, shape=(count,), dtype="float64", chunks=(CHUNK // 8,), compressors=None)
    return array, lambda: None


def _make_h5py(path: str, count: int) -> tuple[Any, Any]:
    import h5py

    file = h5py.File(path, "w")
    return file.create_dataset("x", (count,), np.float64), file.close


MAKERS = {"blosc2": _make_blosc2, "zarr": _make_zarr, "h5py": _make_h5py}


def open_array(form: str, path: str, mode: str = "r") -> Any:
    """The array, on THREADS threads; "r" or "r+"."""
    if form == "blosc2":
        import blosc2

        blosc2.set_nthreads(THREADS)
        return blosc2.open(path, mode="r" if mode == "r" else "a", dparams={"nthreads": THREADS})
    if form == "zarr":
        import zarr

        zarr.config.set({"threading.max_workers": THREADS, "async.concurrency": THREADS})
        return zarr.open_array(path, mode=mode)
    import h5py

    return h5py.File(path, mode)["x"]


def compute_array_sum(form: str, path: str) -> float:
    """The sum of what `path` holds."""
    array = open_array(form, path)
    return sum(float(array[part].sum()) for part in _iterate_slices(array.shape[0]))


def sum_array(meter: Meter, form: str, path: str) -> dict[str, float]:
    array = open_array(form, path)
    with meter:
        total = sum(float(array[part].sum()) for part in _iterate_slices(array.shape[0]))
    return {"sum": total}


def gather_array(meter: Meter, form: str, path: str, count: int, reads: int, seed: int) -> dict[str, float]:
    """By the library's own indexing with an array; h5py wants sorted indices for that, and is faster one by one."""
    indices = NumberFile(path, count).pick(reads, seed)
    array = open_array(form, path)
    with meter:
        if form == "h5py":
            total = sum(float(array[index]) for index in indices.tolist())
        else:
            total = float((array.vindex if form == "zarr" else array)[indices].sum())
    return {"sum": total}


def add_array(meter: Meter, form: str, path: str) -> dict[str, float]:
    """Adds 1 to each element, slice by slice, and makes them durable."""
    array = open_array(form, path, "r+")
    with meter:
        for part in _iterate_slices(array.shape[0]):
            array[part] = array[part] + 1
        if form == "h5py":
            array.file.flush()
        _sync(path)
    return {}


def _sync(path: str) -> None:
    """What none of them does: fsync, of the file or of each in the folder."""
    paths = [os.path.join(base, name) for base, _, names in os.walk(path) for name in names] or [path]
    for each in paths:
        with open(each, "rb") as file:
            os.fsync(file.fileno())

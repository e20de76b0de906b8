"""Libraries of chunked arrays, uncompressed where they can: blosc2, zarr 3, h5py. They read slices, not memory."""

from __future__ import annotations

import os
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
        for start in range(0, numbers.count, SLICE // 8):
            stop = min(start + SLICE // 8, numbers.count)
            array[start:stop] = compute_range(start, stop)
        close()
        os.sync()
    return path


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


def sum_array(meter: Meter, form: str, path: str) -> dict[str, float]:
    array = open_array(form, path)
    total, step = 0.0, SLICE // 8
    with meter:
        for start in range(0, array.shape[0], step):
            total += float(array[start : start + step].sum())
    return {"sum": total}

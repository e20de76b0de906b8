"""A file opened, one element read, closed again: as a region, by np.memmap, and by the libraries of arrays.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import umappy
from harness.child import Meter
from harness.number_file import NumberFile
from peers import arrays
from peers.mapped import open_mapped
from peers.memmap import open_memmap

SEED = 4


def open_often(meter: Meter, form: str, path: str, count: int, times: int, memory: int) -> dict[str, float]:
    """`form`: "shared pager", "own pager" (each of `memory` bytes), "memmap", or one of arrays.FORMS."""
    indices = NumberFile(path, count).pick(times, SEED).tolist()
    if form == "shared pager":
        with umappy.Pager(memory) as pager:
            return _measure(meter, indices, lambda index: read_shared(path, pager, index))
    if form == "own pager":
        return _measure(meter, indices, lambda index: read_own(path, memory, index))
    if form == "memmap":
        return _measure(meter, indices, lambda index: read_memmap(path, index))
    arrays.open_array(form, path)  # the import is not what is measured
    return _measure(meter, indices, lambda index: read_array(form, path, index))


def _measure(meter: Meter, indices: list[int], read: Callable[[int], float]) -> dict[str, float]:
    with meter:
        total = sum(map(read, indices))
    return {"sum": total}


def read_shared(path: str, pager: umappy.Pager, index: int) -> float:
    with umappy.umap(path, pager=pager) as region:
        return float(np.frombuffer(region, np.float64)[index])


def read_own(path: str, memory: int, index: int) -> float:
    with open_mapped(path, memory) as a:
        value = float(a[index])
        del a
    return value


def read_memmap(path: str, index: int) -> float:
    return float(open_memmap(path)[index])  # nobody has it any more: that unmaps it


def read_array(form: str, path: str, index: int) -> float:
    array = arrays.open_array(form, path)
    value = float(array[index])
    if form == "h5py":
        array.file.close()
    return value

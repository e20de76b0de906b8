"""A file as an array in memory, ours or np.memmap, for what is measured alike of both; and what memory that takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import umappy
from peers.memmap import open_memmap
from umappy.stores.native import NativeStore
from umappy.stores.wrappers import DelayStore


@contextlib.contextmanager
def open_mapped(
    path: str,
    memory: int | None = None,
    advice: str | None = None,
    fillers: int | None = None,
    delay_seconds: float = 0.0,
) -> Iterator[NDArray[np.float64]]:
    """The file as float64 for reading: a region of a pager of `memory` bytes; np.memmap where that is None.

    `advice` is np.memmap's; `fillers` and `delay_seconds`, of each read of the store, are ours. Who has the array lets
    go of it before the block ends: regions in use do not close.
    """
    if memory is None:
        yield open_memmap(path, advice=advice)
        return
    store: NativeStore = umappy.FileStore(path)
    if delay_seconds:
        store = DelayStore(store, delay_seconds, op="read")
    with umappy.Pager(memory, fillers=fillers) as pager, umappy.umap(store, pager=pager) as region:
        yield np.frombuffer(region, np.float64)


@dataclass(frozen=True)
class Memory:
    """What this process has, in bytes: resident pages, and page tables."""

    pages: int
    tables: int

    @property
    def total(self) -> int:
        return self.pages + self.tables


def read_memory() -> Memory:
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    pages, tables = (int(rows[name].split()[0]) << 10 for name in ("VmRSS", "VmPTE"))
    return Memory(pages, tables)

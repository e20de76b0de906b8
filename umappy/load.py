"""`load`: the array in a .npy or .npy.zst file, mapped."""

from __future__ import annotations

import mmap
import os
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from umappy._npy import NpyHeader, read_header
from umappy._umap import umap
from umappy.config import ReadAhead
from umappy.open_store import is_compressed, is_url, open_store
from umappy.pager import Pager
from umappy.stores import FileStore, Store, ZstdStore
from umappy.stores._zstd_options import LEVEL_DEFAULT, Dictionary

MODES = {"r": "r", "readonly": "r", "r+": "r+", "readwrite": "r+"}


def load(
    path: str | os.PathLike[str],
    mode: str = "r",
    *,
    pager: Pager | None = None,
    page_size: SupportsIndex | str | None = None,
    readahead: ReadAhead | None = None,
    level: SupportsIndex = LEVEL_DEFAULT,
    dictionary: Dictionary | None = None,
) -> NDArray[Any]:
    """Returns the array in a .npy file, or in a compressed one that ends in ".zst", mapped into memory.

    `path` may be a URL such as "nbd://host/export", see NbdStore, of an export that begins as such a file.

    Nothing is read until it is touched. `mode` is "r" (the array is read-only) or "r+" (what is written goes to the
    file: `umappy.array.region_of(a)[0].flush()` makes it durable, and so does letting go of the array). `pager`,
    `page_size` and `readahead` are as in `umappy.umap`; `level` and `dictionary` as in `umappy.ZstdStore`.

    An array with no elements is not mapped. The array keeps its region, and so its file, open.

    Raises ValueError for a file that holds no array, or one of Python objects; what `umap` raises otherwise.
    """
    if not isinstance(mode, str):
        raise TypeError(f"mode is {mode!r}: wants 'r' or 'r+'")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: wants 'r' or 'r+'; umappy.save makes files")
    store, header, start = _open(os.fspath(path), MODES[mode], level, dictionary)
    try:
        if header.nbytes == 0:
            return _make_empty(store, header, mode)
        region = umap(
            store,
            header.offset - start + header.nbytes,
            mode=mode,
            page_size=page_size,
            pager=pager,
            readahead=readahead,
        )
    except BaseException:
        store.close()
        raise
    # frombuffer holds the region's buffer, so that it cannot be closed under the array; np.ndarray(buffer=) would not.
    data = np.frombuffer(region, np.uint8, header.nbytes, header.offset - start)
    return data.view(header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")


def _open(path: str, mode: str, level: SupportsIndex, dictionary: Dictionary | None) -> tuple[Store, NpyHeader, int]:
    """The store, what it holds, and the byte of the file at which the store begins."""
    if is_compressed(path):
        store: Store = ZstdStore(path, mode, level=level, dictionary=dictionary)
    elif dictionary is not None:
        raise ValueError(f"{path!r} is not compressed: leave dictionary out")
    else:
        store = open_store(path, mode)
    try:
        header = read_header(store)
    except BaseException:
        store.close()
        raise
    # Data that begins behind a long header: mapped from the page it begins in, so that O_DIRECT still applies.
    start = header.offset // mmap.PAGESIZE * mmap.PAGESIZE
    if start == 0 or is_url(path) or is_compressed(path):
        return store, header, 0
    store.close()
    return FileStore(path, mode, offset=start), header, start


def _make_empty(store: Store, header: NpyHeader, mode: str) -> NDArray[Any]:
    store.close()
    array = np.empty(header.shape, header.dtype, order="F" if header.fortran_order else "C")
    array.flags.writeable = MODES[mode] == "r+"
    return array

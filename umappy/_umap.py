"""`umap`: from a store, or a path, to a region."""

from __future__ import annotations

import os
from typing import SupportsIndex

from umappy._engine import lib
from umappy.config import Config, ReadAhead, config
from umappy.open_store import check_name, is_compressed, is_url, open_store
from umappy.pager import Pager, default_pager, make_budget_error
from umappy.region import Region
from umappy.sizes import format_size, parse_size
from umappy.stores import Store

PAGE_SIZE_AUTO = 4 << 10
"""The page size that "auto" chooses where the budget allows it: see docs/design.md."""
PAGE_SIZE_LEAST = 4 << 10
ZSTD_PAGE_SIZE = 64 << 10
"""Of a new compressed file, unless the region's pages are smaller."""
MODES = ("r", "r+", "w+", "x", "readonly", "readwrite", "write")
CREATING_MODES = ("w+", "x", "write")


def umap(
    store: Store | str | os.PathLike[str],
    size: SupportsIndex | str | None = None,
    *,
    mode: str | None = None,
    page_size: SupportsIndex | str | None = None,
    pager: Pager | None = None,
    readahead: ReadAhead | None = None,
) -> Region:
    """Maps a store into memory and returns the region, an `mmap.mmap` of `size` bytes.

    `store` is a Store, the path of a file (one that ends in ".zst" is compressed, see ZstdStore), or a URL such as
    "nbd://host/export", see NbdStore. `size` is bytes or "4GiB"; default: all the store holds. `mode` is "r", "r+", for
    paths also "w+" (create or empty; needs `size`) and "x" (create, fail if it exists), or numpy's long names; default:
    the store's own, "r" for a path or a URL. "r+" with a larger
    size extends a file. `page_size` is a power of two from 4 KiB to 64 MiB, a multiple of the store's own where it has
    one, or "auto". `pager` defaults to `umappy.default_pager()`. The region owns the store and closes it. `readahead`
    False keeps it from finding streams and reading ahead of them; every fault then fills its page alone.

    Raises ValueError and TypeError for arguments that do not fit, StoreError when the file cannot be opened,
    BudgetError when the pager's budget is too small for such pages, UffdUnavailableError.
    """
    if isinstance(size, str) and size in MODES:
        raise TypeError(f"umap(store, {size!r}): the second argument is the size; write mode={size!r}")
    bytes_wanted = None if size is None else parse_size(size, "size")
    if bytes_wanted == 0:
        raise ValueError("size is 0: there is nothing to map")
    _check_mode(mode, store)
    if not isinstance(pager, Pager | None):
        raise TypeError(f"pager is {pager!r}: wants a umappy.Pager")
    page_wanted = config.resolve(Config.page_size, page_size)
    ahead = config.resolve(Config.readahead, readahead) is not False
    owner = pager if pager is not None else default_pager()
    if isinstance(store, Store):
        opened = store
    else:
        # Before a file is opened, which mode "w+" would empty.
        auto = ZSTD_PAGE_SIZE if is_compressed(store) else PAGE_SIZE_AUTO
        page_new = _choose_page_size(page_wanted, auto, PAGE_SIZE_LEAST, owner)
        opened = _open(store, bytes_wanted, mode, page_new)
    try:
        writable = _choose_writable(opened, mode)
        length = _choose_size(opened, bytes_wanted)
        auto, least = max(PAGE_SIZE_AUTO, opened.page_size), max(PAGE_SIZE_LEAST, opened.page_size)
        page_bytes = _choose_page_size(page_wanted, auto, least, owner)
        _check_page_size(page_bytes, opened)
        return Region._map(opened, length, writable=writable, page_size=page_bytes, pager=owner, readahead=ahead)
    except BaseException:
        if opened is not store:
            opened.close()
        raise


def _open(where: object, size: int | None, mode: str | None, page_size: int) -> Store:
    name = check_name(where)
    if is_url(where):
        return open_store(name, mode or "r")
    if is_compressed(where) and mode in CREATING_MODES:
        return open_store(name, mode, size=size, page_size=min(page_size, ZSTD_PAGE_SIZE))
    return open_store(name, "r" if mode is None else mode, size=size)


def _check_mode(mode: object, store: object) -> None:
    if mode is None:
        return
    if not isinstance(mode, str):
        raise TypeError(f"mode is {mode!r}: wants a str, one of {', '.join(map(repr, MODES))}")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: wants one of {', '.join(map(repr, MODES))}")
    if mode in CREATING_MODES and isinstance(store, Store):
        raise ValueError(f"mode is {mode!r}, which is for paths: {store!r} exists and is open; leave the mode out")


def _choose_writable(store: Store, mode: str | None) -> bool:
    if mode is None:
        return store.writable
    if mode in ("r", "readonly"):
        return False
    if not store.writable:
        raise ValueError(f"mode is {mode!r}, but {store!r} was opened for reading; open the store with mode='r+'")
    return True


def _choose_size(store: Store, size: int | None) -> int:
    if size is None:
        if store.size == 0:
            raise ValueError(f"{store!r} is empty: there is nothing to map; give a size with mode='r+' to extend it")
        return store.size
    if size > store.size:
        raise ValueError(
            f"size is {format_size(size)} ({size} bytes), but {store!r} holds {store.size}; a file grows when it is "
            "opened with mode='r+' and that size"
        )
    return size


def _choose_page_size(wanted: int | str, auto: int, least: int, pager: Pager) -> int:
    """What the caller wants; "auto" is `auto`, but smaller, down to `least`, where the budget is too small for it."""
    stats = pager.stats()

    def fits(size: int) -> bool:
        return lib.um_pager_memory_min(size, stats.fillers, stats.evictors) <= pager.memory

    if isinstance(wanted, int):
        if not fits(wanted):
            raise make_budget_error(pager.memory, wanted, stats.fillers, stats.evictors)
        return wanted
    size = auto
    while size > least and not fits(size):
        size //= 2
    return size


def _check_page_size(page_size: int, store: Store) -> None:
    if page_size % store.page_size:
        raise ValueError(
            f"page_size is {format_size(page_size)}, but {store!r} has pages of {format_size(store.page_size)}: wants "
            "a multiple of that, or 'auto'"
        )

"""`open_store`: from a URL or a path to a store."""

from __future__ import annotations

import os
import re
from typing import Any, SupportsIndex

from umappy.stores import FileStore, NbdStore, Store, ZstdStore
from umappy.stores._nbd_uri import is_nbd_uri

ZSTD_SUFFIX = ".zst"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_store(
    where: str | os.PathLike[str], mode: str = "r", *, size: SupportsIndex | str | None = None, **options: Any
) -> Store:
    """Opens the store that a URL or a path names.

    A str that begins with "nbd://", "nbd+unix://", "nbds://" or "nbds+unix://" is an NbdStore; every other str or
    os.PathLike is a path: one that ends in ".zst" of a ZstdStore, else of a FileStore. `mode` is "r", "r+", for paths
    also "w+" (create or empty; needs `size`) and "x" (create, fail if it exists), or numpy's long names. `size` is
    bytes or "4GiB"; an export has the size that its server gives it. What else there is in `options` goes to the store.

    Raises ValueError for URLs of other kinds, and what the store raises.
    """
    name = check_name(where)
    if is_url(where):
        if size is not None:
            raise ValueError(f"{name!r}: an export has the size that its server gives it; leave size out")
        return NbdStore(name, mode, **options)
    return (ZstdStore if is_compressed(where) else FileStore)(name, mode, size=size, **options)


def check_name(where: object) -> str:
    """The same as text. TypeError for what is neither; ValueError for a URL that no store is for."""
    if not isinstance(where, str | os.PathLike):
        raise TypeError(f"{where!r}: wants a umappy store or the path of a file, or a URL")
    if isinstance(where, str) and (scheme := _URL.match(where)) and not is_nbd_uri(where):
        raise ValueError(f"{where!r}: no store for {scheme[0]} in this version; a file of that name is './{where}'")
    return os.fspath(where)


def is_url(where: object) -> bool:
    return isinstance(where, str) and is_nbd_uri(where)


def is_compressed(where: object) -> bool:
    """Whether the name is a compressed file's."""
    return isinstance(where, str | os.PathLike) and not is_url(where) and os.fsdecode(where).endswith(ZSTD_SUFFIX)

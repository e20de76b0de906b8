"""`save`: an array to a .npy file, plain or compressed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from umappy._npy import make_header
from umappy.array import region_of
from umappy.stores._zstd_options import (
    LEVEL_DEFAULT,
    PAGE_SIZE_DEFAULT,
    Dictionary,
    read_dictionary,
    read_level,
    read_page_size,
)
from umappy.stores._zstd_pack import ZstdPack

BLOCK = 1 << 20
"""Bytes of the array in flight in this module."""


def save(
    path: str | os.PathLike[str],
    array: ArrayLike,
    *,
    level: SupportsIndex = LEVEL_DEFAULT,
    page_size: SupportsIndex | str = PAGE_SIZE_DEFAULT,
    dictionary: Dictionary | None = None,
) -> None:
    """Saves `array` to `path`, which ends in ".npy", or in ".npy.zst" to be compressed.

    The compressed file is packed: `zstd -d` gives the .npy, `umappy.load` maps it, for writing too. `level` (1 to 22,
    or below 0), `page_size` (4 KiB to 8 MiB) and `dictionary` are those of `umappy.ZstdStore`.

    The file appears, durable and whole, in the place of any that was there, when `save` returns; when it raises, what
    was there is untouched. An array larger than memory is streamed, compressed on all processors.

    Raises ValueError for arrays of Python objects and for arguments that do not fit; StoreError and OSError when the
    file cannot be written, or the array's own file not be read.
    """
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"path is {path!r}: wants a str or a PathLike of it")
    source = np.asarray(array)
    header = make_header(source)
    level_read, page_read, words = read_level(level), read_page_size(page_size), read_dictionary(dictionary)
    # A link stays one: what it points to is replaced.
    target = os.path.realpath(name)
    if name.endswith(".npy.zst"):
        with ZstdPack(target, page_size=page_read, level=level_read, dictionary=words) as pack:
            _write(pack.write, header, source)
    elif name.endswith(".npy"):
        with _replace(target) as descriptor:
            _write(lambda block: _write_all(descriptor, block), header, source)
    else:
        raise ValueError(f"path is {name!r}: wants a name that ends in '.npy', or in '.npy.zst' to be compressed")


def _write(write: Callable[[Any], None], header: bytes, array: NDArray[Any]) -> None:
    write(header)
    for block in _list_blocks(array):
        write(block)
    # What could not be read was handed over as 0xFF.
    if (place := region_of(array)) is not None:
        place[0].check()


def _list_blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The array's bytes in the order of the file, as blocks of memory that cannot fault."""
    if array.size == 0 or array.itemsize == 0:
        return
    count = max(1, BLOCK // array.itemsize)
    if array.flags.c_contiguous or array.flags.f_contiguous:
        flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1)
        for start in range(0, len(flat), count):
            yield flat[start : start + count].copy().view(np.uint8)
        return
    with np.nditer(array, flags=["external_loop", "buffered"], buffersize=count, order="C") as blocks:
        for block in blocks:
            yield np.array(block).view(np.uint8)


def _write_all(descriptor: int, block: Any) -> None:
    left = memoryview(block)
    while len(left):
        left = left[os.write(descriptor, left) :]


@contextlib.contextmanager
def _replace(path: str) -> Iterator[int]:
    """A descriptor to write to; at the end the file is durable and has the name. On failure nothing has changed."""
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".{os.path.basename(path)[:200]}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(os.stat(path).st_mode))
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The header of a .npy: what the bytes behind it are. Versions 1.0 to 3.0 of numpy's format."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from umappy.stores.base import Store

MAGIC = b"\x93NUMPY"
PREFIX = len(MAGIC) + 2
ALIGNMENT = 64
"""Data begins at a multiple of it, as numpy has it."""
FIRST_READ = 256
"""Bytes; nearly all headers are shorter."""
HEADER_MAX = 1 << 20
"""Bytes. numpy writes more only for dtypes of tens of thousands of fields."""
# Bytes of the length field, and the encoding, of each version.
VERSIONS = {(1, 0): (2, "latin1"), (2, 0): (4, "latin1"), (3, 0): (4, "utf-8")}


@dataclass(frozen=True)
class NpyHeader:
    """What an array's bytes mean: they begin at byte `offset` of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return count


def read_header(store: Store) -> NpyHeader:
    """Reads the header of the .npy that `store` holds. ValueError where it holds none, or one of Python objects."""
    start = _read(store, FIRST_READ)
    if not start.startswith(MAGIC):
        raise ValueError(f"{store!r} holds no .npy file: umappy.umap maps plain bytes")
    if tuple(start[len(MAGIC) : PREFIX]) not in VERSIONS:
        raise ValueError(f"{store!r} holds a .npy file of a version that is not known: wants 1.0, 2.0 or 3.0")
    width, encoding = VERSIONS[start[len(MAGIC)], start[len(MAGIC) + 1]]
    offset = PREFIX + width + int.from_bytes(start[PREFIX : PREFIX + width], "little")
    if offset > min(HEADER_MAX, store.size):
        raise ValueError(
            f"{store!r} has {store.size} bytes, but claims a .npy header of {offset} (at most {HEADER_MAX} are read)"
        )
    header = _parse(store, _read(store, offset)[PREFIX + width :], encoding, offset)
    check_dtype(header.dtype, repr(store))
    if header.offset + header.nbytes > store.size:
        raise ValueError(
            f"{store!r} has {store.size} bytes, but its header promises {header.offset + header.nbytes}: an array of "
            f"{header.dtype}, shape {header.shape}"
        )
    return header


def make_header(array: NDArray[Any]) -> bytes:
    """Returns the header for `array`, in Fortran order where only that is how it lies in memory.

    ValueError for a dtype of Python objects.
    """
    check_dtype(array.dtype, "array")
    fortran_order = array.flags.f_contiguous and not array.flags.c_contiguous
    text = repr({"descr": npy_format.dtype_to_descr(array.dtype), "fortran_order": fortran_order, "shape": array.shape})
    version = (1, 0)
    try:
        content = text.encode("latin1")
    except UnicodeEncodeError:
        version, content = (3, 0), text.encode()
    if version == (1, 0) and len(content) + ALIGNMENT + PREFIX > 0xFFFF:
        version = (2, 0)
    width = VERSIONS[version][0]
    padding = -(PREFIX + width + len(content) + 1) % ALIGNMENT
    content += b" " * padding + b"\n"
    return MAGIC + bytes(version) + len(content).to_bytes(width, "little") + content


def check_dtype(dtype: np.dtype[Any], what: str) -> None:
    if dtype.hasobject:
        raise ValueError(f"{what} has dtype {dtype}: Python objects cannot be mapped; use numpy.save and numpy.load")


def _parse(store: Store, content: bytes, encoding: str, offset: int) -> NpyHeader:
    try:
        fields = ast.literal_eval(content.decode(encoding).strip())
        dtype = npy_format.descr_to_dtype(fields["descr"])
        shape = tuple(fields["shape"])
        is_right = all(type(length) is int and length >= 0 for length in shape)
        if not is_right or not isinstance(fields["fortran_order"], bool):
            raise ValueError(f"shape {shape!r}, fortran_order {fields['fortran_order']!r}")
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{store!r} has a .npy header that cannot be read: {error}") from error
    return NpyHeader(dtype, shape, fields["fortran_order"], offset)


def _read(store: Store, length: int) -> bytes:
    buffer = bytearray(min(length, store.size))
    store.read_into(0, buffer)
    return bytes(buffer)

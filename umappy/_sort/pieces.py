"""Cutting an element into unsigned integers that compare, one after another, as numpy compares the elements.

The rules are those of numpy's comparison of structured elements (`VOID_compare` in arraytypes.c.src): fields in turn;
bytes, plain void and sub-arrays as their bytes lie; U by code point; NaN and NaT last (NaN of a float16 field first,
where numpy does that); complex by class (no NaN, imaginary, real, both), then real, then imaginary.
"""

from __future__ import annotations

import enum
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PieceKind(enum.Enum):
    """How a piece's bits become an unsigned integer that compares right."""

    UNSIGNED = enum.auto()
    SIGNED = enum.auto()
    BOOL = enum.auto()  # any byte but 0 is True
    TIME = enum.auto()
    FLOAT = enum.auto()
    COMPLEX_CLASS = enum.auto()  # of a complex number: which parts are NaN
    COMPLEX_PART = enum.auto()  # real or imaginary; NaN is 0, since the class has told
    LONG_HIGH = enum.auto()  # of a long double: sign and exponent
    LONG_LOW = enum.auto()  # and what does not fit there
    LONG_PART_HIGH = enum.auto()
    LONG_PART_LOW = enum.auto()


@dataclass(frozen=True)
class Piece:
    """A part of an element: `bits` (8, 16, 32, 64) that compare as an unsigned integer."""

    kind: PieceKind
    offset: int  # bytes from the start of the element
    dtype: np.dtype[Any]  # as stored, byte order included
    bits: int

    def is_whole(self, dtype: np.dtype[Any]) -> bool:
        """Whether an element of `dtype` is just this, and so sorts as the integers it is."""
        return self.kind is PieceKind.UNSIGNED and self.bits == 8 * dtype.itemsize

    def read(self, buffer: NDArray[np.uint8], itemsize: int, indices: NDArray[np.intp] | None) -> NDArray[np.uint64]:
        """Returns this piece of the elements that lie in `buffer`, or of those at `indices`, as a new array."""
        stored: NDArray[Any] = np.ndarray(len(buffer) // itemsize, self.dtype, buffer, self.offset, (itemsize,))
        chosen = stored if indices is None else stored[indices]
        match self.kind:
            case PieceKind.FLOAT | PieceKind.COMPLEX_PART:
                return self._read_float(chosen)
            case PieceKind.LONG_HIGH | PieceKind.LONG_LOW | PieceKind.LONG_PART_HIGH | PieceKind.LONG_PART_LOW:
                return self._read_long(chosen)
            case PieceKind.COMPLEX_CLASS:
                values: NDArray[np.uint64] = np.isnan(chosen.real).astype(np.uint64)
                values *= np.uint64(2)
                values += np.isnan(chosen.imag)
                return values
            case PieceKind.BOOL:
                chosen = chosen != 0
            case PieceKind.UNSIGNED | PieceKind.SIGNED | PieceKind.TIME:
                pass
        values = chosen.astype(np.uint64)
        if self.kind in {PieceKind.SIGNED, PieceKind.TIME}:
            values ^= np.uint64(1 << (self.bits - 1))
        if self.kind is PieceKind.TIME:
            values -= np.uint64(1)  # NaT wraps round to the largest
        return values

    def _read_float(self, chosen: NDArray[Any]) -> NDArray[np.uint64]:
        floats = chosen.astype(self.dtype.newbyteorder("="))
        unknown = np.isnan(floats)
        floats[floats == 0] = 0  # -0.0
        values: NDArray[np.uint64] = floats.view(f"u{self.bits // 8}").astype(np.uint64)
        _flip_signed(values, self.bits)
        is_least = self.kind is PieceKind.COMPLEX_PART or (self.bits == 16 and _is_half_nan_first())
        values[unknown] = 0 if is_least else (1 << self.bits) - 1
        return values

    def _read_long(self, chosen: NDArray[Any]) -> NDArray[np.uint64]:
        floats = chosen.astype(self.dtype.newbyteorder("="))
        unknown = np.isnan(floats)
        negative = np.signbit(floats)
        floats[floats == 0] = 0
        negative &= floats != 0
        halves = floats.view(np.uint64).reshape(-1, 2)
        if self.kind in {PieceKind.LONG_HIGH, PieceKind.LONG_PART_HIGH}:
            values: NDArray[np.uint64] = halves[:, 1] & np.uint64((1 << self.bits) - 1)
            _flip_signed(values, self.bits)
        else:
            values = halves[:, 0].copy()
            values[negative] = ~values[negative]
        is_part = self.kind in {PieceKind.LONG_PART_HIGH, PieceKind.LONG_PART_LOW}
        values[unknown] = 0 if is_part else (1 << self.bits) - 1
        return values


@functools.cache
def _is_half_nan_first() -> bool:
    """numpy 2's comparison of float16 fields, unlike its sort of float16 arrays, puts NaN first. Does this numpy's?"""
    pair = np.array([(1.0,), (np.nan,)], [("half", np.float16)])
    return bool(np.isnan(np.sort(pair)["half"][0]))


def _flip_signed(values: NDArray[np.uint64], bits: int) -> None:
    """Makes the bits of IEEE floats compare as unsigned integers: all bits of negative ones, else the sign."""
    sign = np.uint64(1 << (bits - 1))
    negative = (values & sign) != 0
    values ^= sign
    values[negative] ^= np.uint64((1 << (bits - 1)) - 1)


def find_pieces(dtype: np.dtype[Any], names: list[str] | None = None) -> list[Piece]:
    """Returns the pieces of `dtype` in the order they compare; `names` puts the fields of a structured one in order."""
    return list(_walk(dtype, 0, names))


def _walk(dtype: np.dtype[Any], offset: int, names: list[str] | None) -> Iterator[Piece]:
    if dtype.names is not None and dtype.fields is not None:
        for name in names or dtype.names:
            field, position = dtype.fields[name][:2]
            yield from _walk(field, offset + position, None)
    elif dtype.subdtype is not None or dtype.kind in "SV":
        yield from _walk_bytes(dtype.itemsize, offset)
    elif dtype.kind == "U":
        character = np.dtype(np.uint32).newbyteorder(dtype.byteorder)
        for start in range(0, dtype.itemsize, 4):
            yield Piece(PieceKind.UNSIGNED, offset + start, character, 32)
    else:
        yield from _walk_number(dtype, offset)


def _walk_bytes(size: int, offset: int) -> Iterator[Piece]:
    while size:
        width = min(8, 1 << (size.bit_length() - 1))
        yield Piece(PieceKind.UNSIGNED, offset, np.dtype(f">u{width}"), 8 * width)
        offset, size = offset + width, size - width


def _walk_number(dtype: np.dtype[Any], offset: int) -> Iterator[Piece]:
    bits = 8 * dtype.itemsize
    unsigned = np.dtype(f"u{dtype.itemsize}").newbyteorder(dtype.byteorder) if bits <= 64 else dtype
    match dtype.kind:
        case "b":
            yield Piece(PieceKind.BOOL, offset, np.dtype(np.uint8), 8)
        case "u":
            yield Piece(PieceKind.UNSIGNED, offset, dtype, bits)
        case "i":
            yield Piece(PieceKind.SIGNED, offset, unsigned, bits)
        case "m" | "M":
            yield Piece(PieceKind.TIME, offset, unsigned, bits)
        case "f":
            yield from _walk_float(dtype, offset, part=False)
        case "c":
            half = np.dtype(f"f{dtype.itemsize // 2}").newbyteorder(dtype.byteorder)
            yield Piece(PieceKind.COMPLEX_CLASS, offset, dtype, 8)
            yield from _walk_float(half, offset, part=True)
            yield from _walk_float(half, offset + half.itemsize, part=True)
        case _:
            raise TypeError(f"dtype {dtype} is not one umappy.sort can order")


def _walk_float(dtype: np.dtype[Any], offset: int, *, part: bool) -> Iterator[Piece]:
    if dtype.itemsize <= 8:
        yield Piece(PieceKind.COMPLEX_PART if part else PieceKind.FLOAT, offset, dtype, 8 * dtype.itemsize)
        return
    # x87's 80 bits: sign and exponent in 16 above a 64-bit mantissa; IEEE's quad: 128 bits.
    high_bits = {63: 16, 112: 64}.get(np.finfo(dtype.newbyteorder("=")).nmant)
    if high_bits is None or sys.byteorder != "little":
        raise TypeError(
            f"a field of dtype {dtype} in a structured dtype cannot be ordered on this machine; use float64"
        )
    yield Piece(PieceKind.LONG_PART_HIGH if part else PieceKind.LONG_HIGH, offset, dtype, high_bits)
    yield Piece(PieceKind.LONG_PART_LOW if part else PieceKind.LONG_LOW, offset, dtype, 64)

"""Sorting inside one buffer in numpy's order, and keys that compare as numpy compares the elements.

Two kinds. Numbers are sorted in place (numbers.py), which is faster than any merge. Everything else
(S, U, V, structured) is cut into pieces: unsigned integers that compare, one after another, as numpy's comparison does.
Pieces are packed into 64-bit words, the words are argsorted, and only elements whose words are equal get another
word. So a record is moved once, numpy's generic comparison of structured elements is never used (it is slow and needs
the GIL), and fields that break few ties are rarely looked at.

Where numpy's comparison calls elements equal (-0.0 and 0.0, NaN and NaN, padding), the pieces are equal too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umappy._sort.blocks import MergedInBlocks, close_gaps, find_cuts
from umappy._sort.numbers import sort_numbers
from umappy._sort.pieces import Piece, find_pieces

WORD_BITS = 64
# Below this much room in a word another piece is not worth reading.
ROOM_MIN_BITS = 8
# Bytes an element that argsorting, taking and breaking ties need at most; tests hold the code to it.
RECORD_WORK_BYTES = 40

Bytes = NDArray[np.uint8]
Range = tuple[int, int]


class SortedElements(Protocol):
    """What a buffer holds, in order."""

    def keys_at(self, first: int, step: int) -> NDArray[Any]:
        """Returns the keys of the elements first, first + step, and so on."""

    def chunks(self, first: int, step: int, space: Bytes) -> Iterator[Bytes]:
        """Yields the elements' bytes in order: `first` bytes, then `step` at a time, then the rest.

        A chunk is valid until the next. It may lie in `space`, which holds one and a block besides.
        """


class Ordering(Protocol):
    """An order over the elements of one dtype."""

    dtype: np.dtype[Any]  # of the elements, or one of the same size as which they are sorted
    key_dtype: np.dtype[Any]  # keys compare under np.sort and np.searchsorted as the elements do
    work_bytes: int  # bytes an element that `sort` allocates at most
    merges_parts: bool  # `merge` takes runs that do not lie one behind the other

    def keys(self, elements: NDArray[Any]) -> NDArray[Any]:
        """Returns the elements' keys, dtype `key_dtype`."""

    def sort(self, buffer: Bytes, space: Bytes) -> SortedElements:
        """Sorts the elements in `buffer`, which may change, and which the result keeps using.

        `space` is memory that may be used meanwhile, and not afterwards.
        """

    def merge(self, buffer: Bytes, parts: Sequence[Range], block_bytes: int, space: Bytes) -> SortedElements:
        """As `sort`, for a buffer of sorted runs: `parts` are their first bytes and those behind their last.

        The runs lie in this order, from the buffer's first byte on. The result has no `keys_at`.
        `chunks` of the result then may use `block_bytes` more of its space than a chunk.
        """

    def accept_sorted(self, buffer: Bytes) -> SortedElements:
        """As `sort`, for elements that are in order already."""


def make_ordering(dtype: np.dtype[Any], order: str | list[str] | None) -> Ordering:
    """Returns the order `np.sort` has for `dtype` and `order`; as there, ValueError for an unknown or doubled field."""
    if order is not None:
        np.empty(0, dtype).sort(order=order)  # numpy's own checks and words
    if dtype.kind in "biufcmM":
        return NumberOrdering(dtype)
    names = [order] if isinstance(order, str) else list(order or [])
    names += [name for name in dtype.names or () if name not in names]
    pieces = find_pieces(dtype, names or None)
    if len(pieces) == 1 and pieces[0].is_whole(dtype):  # S1, S2, S4, S8, U1 and the like
        return NumberOrdering(pieces[0].dtype)
    return RecordOrdering(dtype, pieces)


@dataclass(frozen=True)
class SortedInPlace:
    """A buffer whose elements lie in order."""

    ordering: Ordering
    buffer: Bytes

    def keys_at(self, first: int, step: int) -> NDArray[Any]:
        return self.ordering.keys(self.buffer.view(self.ordering.dtype)[first::step])

    def chunks(self, first: int, step: int, space: Bytes) -> Iterator[Bytes]:
        if first:
            yield self.buffer[:first]
        for start in range(first, len(self.buffer), step):
            yield self.buffer[start : start + step]


@dataclass(frozen=True)
class SortedByIndex:
    """A buffer whose elements are in order when taken by `order`."""

    ordering: RecordOrdering
    buffer: Bytes
    order: NDArray[np.intp]

    def keys_at(self, first: int, step: int) -> NDArray[Any]:
        rows = self.buffer.reshape(len(self.order), self.ordering.dtype.itemsize)
        return self.ordering.keys(rows[self.order[first::step]].reshape(-1).view(self.ordering.dtype))

    def chunks(self, first: int, step: int, space: Bytes) -> Iterator[Bytes]:
        itemsize = self.ordering.dtype.itemsize
        rows = self.buffer.reshape(len(self.order), itemsize)
        taken = filled = 0
        wanted = first or step
        while taken < len(rows):
            count = min(len(rows) - taken, -(-(wanted - filled) // itemsize))
            part = space[filled : filled + count * itemsize].reshape(count, itemsize)
            # Any mode but "raise" writes into `out` without a copy.
            np.take(rows, self.order[taken : taken + count], axis=0, out=part, mode="clip")
            taken, filled = taken + count, filled + count * itemsize
            if filled < wanted:
                break
            yield space[:wanted]
            filled -= wanted
            space[:filled] = space[wanted : wanted + filled]
            wanted = step
        for start in range(0, filled, wanted):
            yield space[start : min(filled, start + wanted)]


class NumberOrdering:
    """bool, integers, floats, complex, datetime64, timedelta64 in any byte order: NaN and NaT last."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.key_dtype = dtype.newbyteorder("=")
        # Halves are sorted as integers: numpy 2.4's sort of many float16 with AVX-512 leaves some out of order.
        self._is_half = dtype.kind == "f" and dtype.itemsize == 2
        # numpy's radix sort, which is its stable sort of integers up to 16 bits, keeps a copy.
        self._radix = (dtype.kind in "biu" and dtype.itemsize <= 2) or self._is_half
        self.work_bytes = 2 * dtype.itemsize if self._radix else 0
        self.merges_parts = not self._radix

    def keys(self, elements: NDArray[Any]) -> NDArray[Any]:
        return elements.view(self.dtype).astype(self.key_dtype)

    def sort(self, buffer: Bytes, space: Bytes) -> SortedElements:
        numbers = self._encode(buffer)
        if self._radix:
            numbers.sort(kind="stable")
        else:
            sort_numbers(numbers, space)
        self._decode(numbers)
        return SortedInPlace(self, buffer)

    def merge(self, buffer: Bytes, parts: Sequence[Range], block_bytes: int, space: Bytes) -> SortedElements:
        if self._radix:
            return self.sort(buffer, space)
        itemsize = self.dtype.itemsize
        numbers = self._encode(buffer)
        places = [(start // itemsize, stop // itemsize) for start, stop in parts]
        cuts = find_cuts(numbers, places, block_bytes // itemsize)
        if cuts is not None:
            return MergedInBlocks(self, numbers, cuts, self._decode)
        count = close_gaps(numbers, places)
        sort_numbers(numbers[:count], space)
        self._decode(numbers[:count])
        return SortedInPlace(self, buffer[: count * itemsize])

    def accept_sorted(self, buffer: Bytes) -> SortedElements:
        return SortedInPlace(self, buffer)

    def _encode(self, buffer: Bytes) -> NDArray[Any]:
        """Makes the elements, where they are, numbers that numpy sorts fast, and returns these."""
        numbers = buffer.view(self.key_dtype)
        if not self.dtype.isnative:
            numbers.byteswap(inplace=True)
        if self.dtype.kind in "mM":
            # NaT is the smallest integer; one less wraps it round to the largest.
            numbers = buffer.view(np.int64)
            np.subtract(numbers, 1, out=numbers)
        elif self._is_half:
            numbers = buffer.view(np.uint16)
            unknown = numbers & np.uint16(0x7FFF)
            np.bitwise_and(numbers, np.uint16(0x7FFF), out=numbers, where=np.greater(unknown, 0x7C00))  # NaN: no sign
            del unknown
            numbers ^= (buffer.view(np.int16) >> 15).view(np.uint16) | np.uint16(0x8000)
        return numbers

    def _decode(self, numbers: NDArray[Any]) -> None:
        if self.dtype.kind in "mM":
            np.add(numbers, 1, out=numbers)
        elif self._is_half:
            numbers ^= ~(numbers.view(np.int16) >> 15).view(np.uint16) | np.uint16(0x8000)
        if not self.dtype.isnative:
            numbers.byteswap(inplace=True)


@dataclass(frozen=True)
class _Position:
    """How much of the elements has been compared: whole pieces, and of the next all but its `low_bits` lowest bits."""

    piece: int
    low_bits: int


class RecordOrdering:
    """S, U, V and structured dtypes, fields compared in the order given."""

    def __init__(self, dtype: np.dtype[Any], pieces: list[Piece]) -> None:
        self.dtype = dtype
        self.work_bytes = RECORD_WORK_BYTES
        self.merges_parts = False
        self._pieces = pieces
        self._key_bytes = sum(piece.bits // 8 for piece in pieces)
        self.key_dtype = np.dtype(f"S{max(1, self._key_bytes)}")

    def keys(self, elements: NDArray[Any]) -> NDArray[Any]:
        count = len(elements)
        source = np.ascontiguousarray(elements).view(np.uint8)
        keys = np.zeros((count, self.key_dtype.itemsize), np.uint8)
        offset = 0
        for piece in self._pieces:
            size = piece.bits // 8
            column = np.ndarray(count, f">u{size}", keys, offset, (keys.shape[1],))
            column[...] = piece.read(source, self.dtype.itemsize, None)
            offset += size
        return keys.reshape(-1).view(self.key_dtype)

    def merge(self, buffer: Bytes, parts: Sequence[Range], block_bytes: int, space: Bytes) -> SortedElements:
        return self.sort(buffer, space)

    def accept_sorted(self, buffer: Bytes) -> SortedElements:
        return SortedInPlace(self, buffer)

    def sort(self, buffer: Bytes, space: Bytes) -> SortedElements:
        words = self._pack(buffer, None, None, self._begin(0))
        if words is None:
            return SortedInPlace(self, buffer)
        word, position = words
        order = np.argsort(word)
        starts, counts = _find_ties(word, order)
        del word, words
        self._break_ties(buffer, order, starts, counts, position)
        return SortedByIndex(self, buffer, order)

    def _begin(self, piece: int) -> _Position:
        return _Position(piece, self._pieces[piece].bits if piece < len(self._pieces) else 0)

    def _break_ties(
        self,
        buffer: Bytes,
        order: NDArray[np.intp],
        starts: NDArray[np.intp],
        counts: NDArray[np.intp],
        position: _Position,
    ) -> None:
        """Orders each group of elements order[start : start + count] by what comes from `position` on."""
        if position.piece == len(self._pieces) or not len(starts):
            return
        # Small groups are sorted many at a time, their number in the word's high bits. Eight words an element are
        # needed for that and four for a group alone, so batches are kept to an eighth of all.
        batch = max(1, len(order) // 8)
        large = counts > batch
        for start, count in zip(starts[large].tolist(), counts[large].tolist(), strict=True):
            self._sort_group(buffer, order, start, count, position)
        if large.any():
            starts, counts = starts[~large], counts[~large]
        ends = np.cumsum(counts)
        first = 0
        while first < len(starts):
            done = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + batch, side="right")))
            self._sort_groups(buffer, order, starts[first:last], counts[first:last], position)
            first = last

    def _sort_group(self, buffer: Bytes, order: NDArray[np.intp], start: int, count: int, position: _Position) -> None:
        indices = order[start : start + count]
        words = self._pack(buffer, indices, None, position)
        if words is None:
            return
        word, position = words
        moved = np.argsort(word)
        starts, counts = _find_ties(word, moved)
        del word, words
        indices[...] = indices[moved]
        del moved
        self._break_ties(buffer, order, starts + start, counts, position)

    def _sort_groups(
        self,
        buffer: Bytes,
        order: NDArray[np.intp],
        starts: NDArray[np.intp],
        counts: NDArray[np.intp],
        position: _Position,
    ) -> None:
        ends = np.cumsum(counts)
        where = np.repeat(starts - (ends - counts), counts)
        where += np.arange(len(where))
        groups = np.repeat(np.arange(len(starts), dtype=np.uint64), counts)
        indices = order[where]
        words = self._pack(buffer, indices, groups, position)
        if words is None:
            return
        word, position = words
        moved = np.argsort(word)
        order[where] = indices[moved]
        ties, counts = _find_ties(word, moved)
        starts = where[ties]
        del word, words, moved, indices, groups, where
        self._break_ties(buffer, order, starts, counts, position)

    def _pack(
        self, buffer: Bytes, indices: NDArray[np.intp] | None, groups: NDArray[np.uint64] | None, position: _Position
    ) -> tuple[NDArray[np.uint64], _Position] | None:
        """Returns a word for each element, its group first, and how far it reaches; None if all groups are equal.

        Only bits in which the elements differ are packed, so shared prefixes and the zeros of U cost no room.
        """
        word = groups
        room = WORD_BITS - (int(groups[-1]).bit_length() if groups is not None else 0)
        found = False
        while position.piece < len(self._pieces) and room >= ROOM_MIN_BITS:
            values = self._pieces[position.piece].read(buffer, self.dtype.itemsize, indices)
            if position.low_bits < self._pieces[position.piece].bits:
                values &= np.uint64((1 << position.low_bits) - 1)
            low, high = int(values.min()), int(values.max())
            bits, shift = (high - low).bit_length(), 0
            if bits == 0:
                position = self._begin(position.piece + 1)
                continue
            if bits <= room:
                values -= np.uint64(low)
                position = self._begin(position.piece + 1)
            else:
                bits = (low ^ high).bit_length()
                values &= np.uint64((1 << bits) - 1)
                shift = bits - room
                values >>= np.uint64(shift)
                position = _Position(position.piece, shift)
            width = bits - shift
            found = True
            if word is None or width == WORD_BITS:
                word = values
            else:
                word <<= np.uint64(width)
                word |= values
            room -= width
        return (word, position) if found and word is not None else None


def _find_ties(word: NDArray[np.uint64], order: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns start and count of each group of equal words, in places of `order`."""
    ordered = word[order]
    edges = np.zeros(len(ordered) + 1, np.int8)
    np.equal(ordered[1:], ordered[:-1], out=edges[1:-1].view(np.bool_))
    del ordered
    np.subtract(edges[1:], edges[:-1], out=edges[1:])  # 1 where a group begins, -1 at its last
    steps = edges[1:]
    starts = np.flatnonzero(steps == 1)
    counts = np.flatnonzero(steps == -1)
    counts -= starts
    counts += 1
    return starts, counts

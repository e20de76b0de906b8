"""Gathering elements of arrays larger than memory.

`a[indices]` faults once a page, one after another: the device sees one request at a time. `take` knows all of the
indices. Scattered small items of a region that does not fit its budget are gathered past memory: the engine reads the
blocks they lie in, many at once, and the pages stay absent. Else it names all of the pages to the pager, in the order
they lie in the store, and every filler reads; then it gathers from memory. What needs more than half of the budget is
done in pieces of that size.

An *item* is what one index (and one position on each axis that is far apart in memory) stands for: a block of bytes of
the same size for all of them. Items are sorted by address and cut into pieces by the pages they need; the values go
where numpy would have put them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from umappy.array import region_of
from umappy.region import Region

Mode: TypeAlias = Literal["raise", "wrap", "clip"]
Integers: TypeAlias = NDArray[np.intp]

ITEMS_MAX = 1 << 18
"""Items that are looked at together: what is remembered of each takes 105 bytes (m)."""
GATHER_BYTES = 4 << 20
"""Values that are copied at once."""
ITEM_BYTES_MAX = 64 << 10
"""Larger items are better read by all fillers, into place."""
RUN_BYTES_MAX = 128 << 10
"""So are longer runs of pages, on the average: not the largest items where few are neighbours."""
GAP_BYTES = 8 << 10
"""A gap of pages no larger than this is read along, where that makes one read of two."""
BLOCK_BYTES = 4096
WHOLE_BYTES_MIN = 16 << 10
"""Items from which on whole blocks are read straight to their place."""
SPAN_SHIFT = 21
SPAN_BYTES = 2 * 4096
"""Bookkeeping of the engine for each 2 MiB that it holds a page of: a page table and a page of page words."""

# How numpy names its modes where it is given numbers.
_MODES: dict[object, Mode] = {0: "clip", 1: "wrap", 2: "raise", None: "raise"}


def take(
    a: Any,
    indices: ArrayLike,
    axis: SupportsIndex | None = None,
    out: NDArray[Any] | None = None,
    mode: Mode = "raise",
) -> Any:
    """Returns `np.take(a, indices, axis, out, mode)`, reading what it needs of a region in parallel.

    `a` is any array whose memory lies in a region: from `np.frombuffer(region)`, or a slice, reshape, transpose or
    other view of such. It is never copied as a whole, whatever its layout. Other arrays go to `np.take` itself.

    Parameters:
        a: the array to take from.
        indices: integers of any shape, in any order. Sorted ones save a sort.
        axis: the axis they count along; None: along all elements, in C order.
        out: where the result goes, of its shape and of a dtype that casts safely to that of `a`.
        mode: what becomes of indices out of bounds: "raise" an IndexError (and negative ones count from the end),
            "wrap" around, or "clip" to the range (and negative ones mean the first).

    Beside the result and the memory of the pager it needs up to 24 bytes an index, and 27 MiB. Errors: those of
    np.take; StoreError when a page cannot be read, and then nothing is known of what `out` holds.
    """
    found = region_of(a) if isinstance(a, np.ndarray) and type(a).take is np.ndarray.take else None
    if found is None or a.size == 0 or a.itemsize == 0:
        return np.take(a, cast(Any, indices), axis=axis, out=cast(Any, out), mode=mode)
    region = found[0]
    try:
        return _take(region, a, indices, axis, out, mode)
    except BaseException:
        del a, out, found  # the error keeps this frame, and would keep the region from closing
        raise


def _take(region: Region, a: NDArray[Any], indices: ArrayLike, axis: Any, out: Any, mode: Any) -> Any:
    if a.ndim == 0:
        a = a.reshape(1)
    np.take(np.zeros((1,) * a.ndim), 0, axis=axis, mode=mode)  # numpy's own checks of these two, and its errors
    mode = _MODES.get(mode, mode)
    source = np.ndarray.view(a, np.ndarray)
    if axis is None and (source.ndim == 1 or source.flags.c_contiguous):
        source, axis = source.reshape(-1), 0
    along = None if axis is None else operator.index(axis) % a.ndim
    length = a.size if along is None else source.shape[along]
    index = _read_indices(indices)
    before, after = ((), ()) if along is None else (source.shape[:along], source.shape[along + 1 :])
    shape = before + index.shape + after
    result = np.empty_like(a, order="C", shape=shape) if out is None else _check_out(out, a.dtype, shape)
    flat = _resolve(index.reshape(-1), length, along or 0, mode)
    if flat.size and result.size:
        target = _view_target(result, a, before, flat.size, after)
        _Gather(region, source).run(along, flat, target)
        if not np.may_share_memory(target, result):
            result[...] = target.reshape(shape)
    region.check()
    if out is None:
        return result[()] if result.ndim == 0 else result
    if (written := region_of(out)) is not None:
        written[0].check()
    return out


def _read_indices(indices: ArrayLike) -> Integers:
    if isinstance(indices, np.ndarray):
        return np.asarray(indices).astype(np.intp, casting="same_kind", copy=False)
    return np.asarray(indices, dtype=np.intp)


def _resolve(index: Integers, length: int, axis: int, mode: Mode) -> Integers:
    """Indices from 0 to `length`."""
    if mode == "clip":
        return np.clip(index, 0, length - 1)
    if mode == "wrap":
        return np.mod(index, length)
    low, high = (int(index.min()), int(index.max())) if index.size else (0, 0)
    if low < -length or high >= length:
        bad = index[(index < -length) | (index >= length)][0]
        raise IndexError(
            f"index {bad} is out of bounds for axis {axis} with size {length}; mode='wrap' or 'clip' takes any"
        )
    return np.where(index < 0, index + length, index) if low < 0 else index


def _check_out(out: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is a {type(out).__name__}: wants a numpy array")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}: wants that of the result, {shape}")
    if not np.can_cast(out.dtype, dtype, "safe"):
        raise TypeError(f"out has dtype {out.dtype}, which does not cast safely to {dtype}: wants {dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only: wants an array that can be written to")
    return out


def _view_target(
    result: NDArray[Any], a: NDArray[Any], before: tuple[int, ...], count: int, after: tuple[int, ...]
) -> NDArray[Any]:
    """`result` with one axis for the indices; other memory where it has no such view, or lies over what is read."""
    shape = (*before, count, *after)
    plain = np.ndarray.view(result, np.ndarray)
    if not np.may_share_memory(plain, a) and (plain.shape == shape or plain.flags.c_contiguous):
        return plain.reshape(shape)
    return np.empty(shape, a.dtype)


@dataclass(frozen=True)
class _Items:
    """Some items: where each begins in the region, in bytes, and its coordinates in the source and in the target."""

    starts: Integers
    source: tuple[Integers, ...]
    target: tuple[Integers, ...]

    def select(self, which: slice | Integers) -> _Items:
        return _Items(self.starts[which], tuple(c[which] for c in self.source), tuple(c[which] for c in self.target))


class _Gather:
    """One call: the pager's memory that it may use, and where the array lies."""

    def __init__(self, region: Region, source: NDArray[Any]) -> None:
        self._region, self._source = region, source
        self._page_shift = region.page_size.bit_length() - 1
        self._span_shift = max(0, SPAN_SHIFT - self._page_shift)
        self._limit_bytes = region._prefetch_limit()
        self._fits = len(region) <= 2 * self._limit_bytes

    def run(self, axis: int | None, index: Integers, target: NDArray[Any]) -> None:
        if axis is None:
            self._run_flat(index, target)
        else:
            order = None if _is_sorted(index) else np.argsort(index)
            self._run_axis(self._source, axis, index if order is None else index[order], order, target)

    def _run_flat(self, index: Integers, target: NDArray[Any]) -> None:
        """Elements of a source that has no flat view."""
        source = self._source
        coordinates = np.unravel_index(index, source.shape)
        starts = _locate(self._origin(source), coordinates, source.strides)
        order = np.argsort(starts)
        for at in range(0, index.size, ITEMS_MAX):
            some = order[at : at + ITEMS_MAX]
            self._take_items(
                _Items(starts[some], tuple(c[some] for c in coordinates), (some,)), source, target, source.itemsize
            )

    def _run_axis(
        self, source: NDArray[Any], axis: int, index: Integers, order: Integers | None, target: NDArray[Any]
    ) -> None:
        """`index` is sorted; `order` tells where each was."""
        block = _find_block(source, axis, self._region.page_size)
        cut = _find_cut(source, block, self._limit_bytes)
        if cut is not None:
            cut_axis, step = cut
            for at in range(0, source.shape[cut_axis], step):
                part = (*(slice(None),) * cut_axis, slice(at, at + step))
                self._run_axis(source[part], axis, index, order, target[part])
            return
        far = [i for i in range(source.ndim) if i not in block.axes]
        far.sort(key=lambda i: -abs(source.strides[i]))  # as they lie in memory
        items_shape = tuple(index.size if i == axis else source.shape[i] for i in far)
        count = math.prod(items_shape)
        moved, moved_target = source.transpose(*far, *block.axes), target.transpose(*far, *block.axes)
        origin = self._origin(source) + block.low
        for at in range(0, count, ITEMS_MAX):
            position = np.unravel_index(np.arange(at, min(at + ITEMS_MAX, count)), items_shape)
            from_ = tuple(index[p] if i == axis else p for i, p in zip(far, position, strict=True))
            to = tuple(order[p] if i == axis and order is not None else p for i, p in zip(far, position, strict=True))
            starts = _locate(origin, from_, (source.strides[i] for i in far))
            items = _Items(starts, from_, to)
            if not _is_sorted(starts):
                items = items.select(np.argsort(starts))
            self._take_items(items, moved, moved_target, block.extent)

    def _origin(self, source: NDArray[Any]) -> int:
        """The byte of the region at which the element with all coordinates zero begins."""
        return int(source.__array_interface__["data"][0]) - self._region.address

    def _take_items(self, items: _Items, source: NDArray[Any], target: NDArray[Any], extent: int) -> None:
        """`items` are sorted by where they begin; each reaches over `extent` bytes."""
        first = items.starts >> self._page_shift
        last = (items.starts + (extent - 1)) >> self._page_shift
        before = np.concatenate((first[:1] - 1, last[:-1]))  # the last page that earlier items need
        near = first - before - 1 <= GAP_BYTES >> self._page_shift
        begin = np.where(near, before + 1, first)
        if not self._fits and extent <= ITEM_BYTES_MAX and self._is_sparse(near, begin, last):
            done = self._gather(items, source, target, extent)
            if done == items.starts.size:
                return
            items = items.select(slice(done, None))
            first, last, before, begin = first[done:], last[done:], before[done:], begin[done:]
        spans = (last >> self._span_shift) - (before >> self._span_shift)
        cost = np.cumsum(((last + 1 - begin) << self._page_shift) + spans * SPAN_BYTES)
        at, spent = 0, 0
        while at < cost.size:
            stop = max(at + 1, int(np.searchsorted(cost, spent + self._limit_bytes, "right")))
            spent = int(cost[stop - 1])
            begin[at] = first[at]  # a page shared with the piece before may have left since
            self._prefetch(begin[at:stop], last[at:stop])
            _copy(items.select(slice(at, stop)), source, target)
            at = stop

    def _is_sparse(self, near: NDArray[np.bool_], begin: Integers, last: Integers) -> bool:
        pages, runs = int((last + 1 - begin).sum()), 1 + int(np.count_nonzero(~near[1:]))
        return pages << self._page_shift <= runs * max(RUN_BYTES_MAX, self._region.page_size)

    def _gather(self, items: _Items, source: NDArray[Any], target: NDArray[Any], extent: int) -> int:
        """Takes items without making their pages resident; how many."""
        rows = self._view_rows(source, target, len(items.source), extent)
        if rows is not None:
            places = np.ravel_multi_index(items.target, target.shape[: len(items.target)])
            return self._region._gather(items.starts.astype(np.uint64), rows, places.astype(np.uint64))
        step = max(1, GATHER_BYTES // extent)
        for at in range(0, items.starts.size, step):
            some = items.select(slice(at, at + step))
            values = _make_aligned(some.starts.size, extent)
            done = self._region._gather(some.starts.astype(np.uint64), values)
            if done > 0:
                some = some.select(slice(done))
                target[some.target] = _view_items(values[:done], source, len(some.source))
            if done < values.shape[0]:
                return at + done
        return items.starts.size

    def _view_rows(self, source: NDArray[Any], target: NDArray[Any], far: int, extent: int) -> NDArray[np.uint8] | None:
        """The result as rows of an item's bytes; None where items are laid out otherwise there, or not at all well."""
        item = source[(slice(0, 1),) * far]
        if target.dtype != source.dtype or not target.flags.c_contiguous or extent != item.nbytes:
            return None
        if not item.flags.c_contiguous:
            return None
        address = target.__array_interface__["data"][0]
        if extent >= WHOLE_BYTES_MIN and address % BLOCK_BYTES and not self._region.store._any_buffer:
            return None  # whole blocks come straight from the store to memory that is aligned
        return target.reshape(-1).view(np.uint8).reshape(-1, extent)

    def _prefetch(self, begin: Integers, last: Integers) -> None:
        counts = last + 1 - begin
        total = int(counts.sum())
        if total < 2:
            return  # a fault is as quick
        pages = np.repeat(begin - (np.cumsum(counts) - counts), counts) + np.arange(total)
        most = max(1, self._limit_bytes >> self._page_shift)
        self._region._prefetch_pages(pages[:most].astype(np.uint64), wait=True)


@dataclass(frozen=True)
class _Block:
    """What one item consists of: axes that lie close in memory, the closest first."""

    axes: tuple[int, ...]
    low: int
    """Bytes from the element with all coordinates zero to the lowest: not above zero."""
    extent: int
    """Bytes from the lowest to behind the highest."""


def _find_block(source: NDArray[Any], axis: int, page_size: int) -> _Block:
    """Joins axes as long as that leaves out no page between the first and the last byte."""
    axes: list[int] = []
    low, extent = 0, source.itemsize
    for i in sorted(range(source.ndim), key=lambda i: abs(source.strides[i])):
        length, stride = source.shape[i], source.strides[i]
        if i != axis and (length == 1 or abs(stride) <= extent + page_size):
            axes.append(i)
            low += min(0, (length - 1) * stride)
            extent += (length - 1) * abs(stride)
    return _Block(tuple(axes), low, extent)


def _find_cut(source: NDArray[Any], block: _Block, limit_bytes: int) -> tuple[int, int] | None:
    """The axis to cut, and into which lengths, where one item alone is more than a piece may be."""
    if block.extent <= limit_bytes:
        return None
    for axis in sorted(block.axes, key=lambda i: -abs(source.strides[i])):
        length, stride = source.shape[axis], abs(source.strides[axis])
        if length > 1 and stride > 0:
            inner = block.extent - (length - 1) * stride
            return axis, max(1, (limit_bytes - inner) // stride + 1)
    return None


def _copy(items: _Items, source: NDArray[Any], target: NDArray[Any]) -> None:
    item_bytes = source.itemsize * math.prod(source.shape[len(items.source) :])
    if item_bytes > GATHER_BYTES // 16:  # by views: fancy indexing would make a copy first
        for from_, to in zip(zip(*items.source, strict=True), zip(*items.target, strict=True), strict=True):
            target[to] = source[from_]
        return
    step = GATHER_BYTES // item_bytes
    for at in range(0, items.starts.size, step):
        some = items.select(slice(at, at + step))
        target[some.target] = source[some.source]


def _make_aligned(count: int, length: int) -> NDArray[np.uint8]:
    """Rows of `length` bytes, the first at a block's begin: whole blocks come straight from the store."""
    memory = np.empty(count * length + BLOCK_BYTES, np.uint8)
    begin = -memory.__array_interface__["data"][0] % BLOCK_BYTES
    return memory[begin : begin + count * length].reshape(count, length)


def _view_items(values: NDArray[np.uint8], source: NDArray[Any], far: int) -> NDArray[Any]:
    """The bytes of items, as elements; `far`: the axes of `source` that are the items' and not their own."""
    shape, strides = source.shape[far:], source.strides[far:]
    low = sum(min(0, (length - 1) * stride) for length, stride in zip(shape, strides, strict=True))
    return np.ndarray((len(values), *shape), source.dtype, values, -low, (values.shape[1], *strides))


def _locate(origin: int, coordinates: Iterable[Integers], strides: Iterable[int]) -> Integers:
    starts: Any = origin
    for coordinate, stride in zip(coordinates, strides, strict=True):
        starts = starts + coordinate * stride
    return cast(Integers, starts)


def _is_sorted(values: Integers) -> bool:
    return bool((values[:-1] <= values[1:]).all())

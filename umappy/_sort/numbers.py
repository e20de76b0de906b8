"""Sorting numbers in memory: by the engine those it knows, by numpy all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from umappy._engine import ffi, lib

if TYPE_CHECKING:
    from umappy._sort.stream import Bytes

KINDS = {"u": lib.UM_NUMBER_UNSIGNED, "i": lib.UM_NUMBER_SIGNED, "f": lib.UM_NUMBER_FLOAT}
SIZES = (4, 8)


def sort_numbers(numbers: NDArray[Any], scratch: Bytes) -> None:
    """Sorts `numbers`, one-dimensional, contiguous and native, in place: NaN last. What is in `scratch` is lost."""
    kind, size = KINDS.get(numbers.dtype.kind), numbers.dtype.itemsize
    if kind is None or size not in SIZES or not numbers.flags.aligned:
        numbers.sort()
        return
    scratch = scratch[-scratch.ctypes.data % size :]
    with ffi.from_buffer(numbers) as memory, ffi.from_buffer(scratch) as space:
        code = lib.um_sort_numbers(memory, len(numbers), size, kind, space, len(scratch))
    assert code == 0, f"{numbers.dtype} was refused ({code})"

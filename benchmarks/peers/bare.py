"""What a program can do that reads a file by hand: the limit of everybody who keeps as much of it in memory.

READERS threads read chunks past the page cache to new memory of `memory` bytes, round and round, each place as soon as
it is free; the main thread adds them up in order. There is no fault, no eviction to choose and nothing to look up. Its
memory is made where it is first read to, as the pager's is; `is_huge`: of huge pages, where the kernel has any.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

import numpy as np

from harness.child import Meter

CHUNK = 2 << 20
READERS = 4


def sum_bare(meter: Meter, path: str, memory: int, is_huge: bool) -> dict[str, float]:
    """`memory` and the file's size are multiples of 2 MiB."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    chunks, places = os.fstat(file).st_size // CHUNK, memory // CHUNK
    with meter:
        mapping = mmap.mmap(-1, memory + CHUNK)
        mapping.madvise(mmap.MADV_HUGEPAGE if is_huge else mmap.MADV_NOHUGEPAGE)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % CHUNK
        buffers = memoryview(mapping)[start : start + memory]
        is_free = [threading.Semaphore(1) for _ in range(places)]
        is_full = [threading.Semaphore(0) for _ in range(places)]
        numbers = iter(range(chunks))
        take = threading.Lock()

        def read() -> None:
            while True:
                with take:
                    number = next(numbers, chunks)
                if number == chunks:
                    return
                place = number % places
                is_free[place].acquire()
                assert os.preadv(file, [buffers[place * CHUNK : (place + 1) * CHUNK]], number * CHUNK) == CHUNK
                is_full[place].release()

        readers = [threading.Thread(target=read, daemon=True) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        array, total = np.frombuffer(buffers, np.float64).reshape(places, -1), 0.0
        for number in range(chunks):
            is_full[number % places].acquire()
            total += array[number % places].sum()
            is_free[number % places].release()
    for reader in readers:
        reader.join()
    return {"sum": total}

"""What of a file is in the kernel's page cache."""

import ctypes
import mmap
import os
from pathlib import Path

PAGE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)


def list_cached(path: Path) -> list[int]:
    """Which pages of the file are there."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        flags = (ctypes.c_ubyte * -(-len(memory) // PAGE))()
        assert LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), flags) == 0
        return [page for page, flag in enumerate(flags) if flag & 1]


def drop_cached(path: Path) -> None:
    """Makes all of it durable, and none of it cached."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert list_cached(path) == []

"""Scratch regions: memory larger than the budget for a while, on a file without a name.

The file never has a name where the file system can do that (O_TMPFILE), else it loses it at once; so it is gone when
the process is, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator

from umappy._sort.failure import release_frames
from umappy._umap import umap
from umappy.config import config
from umappy.errors import StoreFullError
from umappy.pager import Pager
from umappy.region import Region
from umappy.sizes import format_size
from umappy.stores import FileStore


@contextlib.contextmanager
def open_scratch(folder: str, size: int, pager: Pager, page_size: int) -> Iterator[Region]:
    """A region of `size` bytes on a nameless file in `folder`, gone with the block, nothing flushed.

    StoreFullError before anything is written if the folder's file system has less than `size` bytes free.
    """
    check_space(folder, size)
    with tempfile.TemporaryFile(dir=folder, prefix="umappy-scratch-") as file:
        os.ftruncate(file.fileno(), size)
        # The link opens the file itself, with or without a name, and anew, so that direct I/O can be asked for.
        region = umap(FileStore(f"/proc/self/fd/{file.fileno()}", "r+"), pager=pager, page_size=page_size)
        try:
            region.advise("random")  # only where runs are cut is it looked at through memory
            yield region
        except BaseException as error:
            release_frames(error)
            raise
        finally:
            region.close(discard=True)


def check_space(folder: str, size: int) -> None:
    """Raises StoreFullError if `folder`'s file system has less than `size` bytes free for this user."""
    free = free_bytes(folder)
    if free < size:
        raise StoreFullError(
            errno.ENOSPC,
            f"scratch files need {format_size(size)} and {format_size(free)} are free; "
            "make room, or name another folder with scratch_dir",
            folder,
            "open",
        )


def free_bytes(folder: str) -> int:
    """Returns how many bytes this user can still write in `folder`'s file system."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def find_folder(region: Region | None) -> str:
    """Returns the folder for scratch beside `region`: that of its file, else `umappy.config.temp_dir`."""
    if region is not None and isinstance(region.store, FileStore):
        return os.path.dirname(os.path.abspath(region.store.path))
    return config.temp_dir

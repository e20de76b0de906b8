"""What the commands for compressed files share: opening them, and going through them on all processors."""

from __future__ import annotations

import argparse
import collections
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from umappy.cli.failure import CommandError
from umappy.stores import ZstdCostWarning, ZstdStore

BLOCK = 4 << 20
"""Bytes of the image that a thread takes at a time."""
FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC = b"\x2a\x4d\x18"

Result = TypeVar("Result")


def open_input(arguments: argparse.Namespace) -> ZstdStore:
    return open_compressed(arguments.input, read_dictionary_file(arguments.dictionary))


def open_compressed(path: str, dictionary: bytes | None) -> ZstdStore:
    """Opens for reading. Frames that take much memory to decode are no reason to refuse here, nor is reading at random
    slow for who goes through a file once. A file that keeps its dictionary takes no other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZstdCostWarning)
        return ZstdStore(path, dictionary=dictionary, _lenient=True)


def add_input(parser: argparse.ArgumentParser) -> None:
    """The file, and the dictionary that files of others may need."""
    parser.add_argument("input", metavar="FILE.zst")
    parser.add_argument("--dictionary", metavar="FILE", help="the dictionary of a file that does not hold its own")


def read_dictionary_file(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


def is_compressed(start: bytes) -> bool:
    """Whether a file that begins so is a zstd file."""
    return start.startswith(FRAME_MAGIC) or (len(start) >= 4 and start[0] >> 4 == 5 and start[1:4] == SKIPPABLE_MAGIC)


def check_output(path: str, *, overwrite: bool) -> None:
    if os.path.exists(path) and not overwrite:
        raise CommandError(f"{path} exists: give --overwrite to replace it, or another name")


def count_threads() -> int:
    return len(os.sched_getaffinity(0))


def map_in_order(work: Callable[[int, int], Result], size: int, block: int = BLOCK) -> Iterator[tuple[int, Result]]:
    """Calls `work(offset, length)` for the blocks of `size` bytes on all processors, a few ahead of who takes the
    results; yields pairs of how many bytes are done and the result, in order."""
    threads = count_threads()
    waiting: collections.deque[tuple[int, Future[Result]]] = collections.deque()
    offset = 0
    with ThreadPoolExecutor(threads, "umappy") as pool:
        try:
            while offset < size or waiting:
                while offset < size and len(waiting) < 2 * threads:
                    length = min(block, size - offset)
                    waiting.append((offset + length, pool.submit(work, offset, length)))
                    offset += length
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

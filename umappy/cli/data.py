"""Files of random int64, and proof that sorting one lost nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_COUNT = 1 << 20


@dataclass(frozen=True)
class Digest:
    """What a file of int64 holds, whatever the order: count, and sums modulo 2**64 of values and of their hashes."""

    count: int
    total: int
    hashes: int


@dataclass(frozen=True)
class Check:
    """What a look through a file found."""

    digest: Digest
    is_ordered: bool


def write_random(path: str, size: int, seed: int) -> Digest:
    """Writes `size` bytes (whole elements) of random int64 and returns their digest."""
    random = np.random.Generator(np.random.SFC64(seed))
    left, total, hashes = size // 8, 0, 0
    with open(path, "wb") as file:
        while left:
            block = np.frombuffer(random.bytes(8 * min(left, BLOCK_COUNT)), np.int64)
            block.tofile(file)
            total, hashes = total + _sum(block), hashes + _sum(mix(block))
            left -= len(block)
        file.flush()
        os.fsync(file.fileno())
    return Digest(size // 8, total % (1 << 64), hashes % (1 << 64))


def check_file(path: str) -> Check:
    """Reads a file of int64 through."""
    return check_blocks(_read_blocks(path))


def check_blocks(blocks: Iterable[NDArray[np.int64]]) -> Check:
    """Looks at int64 block by block; none of them is empty."""
    count, total, hashes, ordered = 0, 0, 0, True
    last: int | None = None
    for block in blocks:
        ordered = ordered and (last is None or last <= block[0]) and bool((block[1:] >= block[:-1]).all())
        last = int(block[-1])
        count, total, hashes = count + len(block), total + _sum(block), hashes + _sum(mix(block))
    return Check(Digest(count, total % (1 << 64), hashes % (1 << 64)), ordered)


def _read_blocks(path: str) -> Iterator[NDArray[np.int64]]:
    with open(path, "rb") as file:
        while len(block := np.fromfile(file, np.int64, BLOCK_COUNT)):
            yield block


def mix(block: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of each element: the finalizer of MurmurHash3, a bijection in which each bit moves all others."""
    h = block.view(np.uint64).copy()
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


def _sum(block: NDArray[np.int64] | NDArray[np.uint64]) -> int:
    return int(block.view(np.uint64).sum(dtype=np.uint64))

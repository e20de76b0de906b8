"""Making .zst files as others do, and reading them as others do: zstd, zstandard, pyzstd, indexed_zstd."""

from __future__ import annotations

import subprocess
from pathlib import Path

import indexed_zstd
import numpy as np
import pyzstd
import zstandard

SKIPPABLE = b"\x53\x2a\x4d\x18"


def make_data(size: int, seed: int = 1) -> bytes:
    """Stretches that compress well, stretches that do not, and zeros."""
    chance = np.random.default_rng(seed)
    data = np.frombuffer(chance.bytes(size), np.uint8).copy()
    places = np.arange(size) // 20_000
    data[places % 3 == 0] &= 3
    data[places % 7 == 0] = 0
    return data.tobytes()


def run_tool(*arguments: object, data: bytes | None = None) -> bytes:
    done = subprocess.run(
        [str(argument) for argument in arguments], input=data, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, (arguments, done.stderr.decode())
    return done.stdout


def decode_by_tool(path: Path, *options: str) -> bytes:
    run_tool("zstd", "-q", "-t", "--long=31", *options, path)
    return run_tool("zstd", "-q", "-d", "-c", "--long=31", *options, path)


def make_frames(data: bytes, frame_size: int, **options: object) -> list[bytes]:
    """Frames of `frame_size` bytes each; `options` are those of zstandard.ZstdCompressor."""
    compressor = zstandard.ZstdCompressor(**options)
    return [compressor.compress(data[at : at + frame_size]) for at in range(0, len(data), frame_size)]


def make_skippable(content: bytes) -> bytes:
    return SKIPPABLE + len(content).to_bytes(4, "little") + content


def write_seekable(path: Path, data: bytes, frame_size: int) -> None:
    with pyzstd.SeekableZstdFile(path, "w", max_frame_content_size=frame_size) as file:
        file.write(data)


def read_by_pyzstd(path: Path, stretches: list[tuple[int, int]]) -> list[bytes]:
    """Needs a seek table."""
    with pyzstd.SeekableZstdFile(path, "r") as file:
        return [_read_at(file, *stretch) for stretch in stretches]


def read_by_indexed_zstd(path: Path, stretches: list[tuple[int, int]]) -> list[bytes]:
    file = indexed_zstd.IndexedZstdFile(str(path))
    try:
        return [_read_at(file, *stretch) for stretch in stretches]
    finally:
        file.close()


def _read_at(file: object, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)

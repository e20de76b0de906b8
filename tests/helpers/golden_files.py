"""The golden files of zstd stores: a set for each version of the format, made once and never again.

`python tests/helpers/golden_files.py` makes those of today's version that are missing, in tests/golden/. They are kept
compressed, since a log is mostly zeros. What each must hold is computed here, by nothing that zstd has a part in.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from umappy.stores import ZstdStore
from umappy.stores._zstd_pack import ZstdPack

FOLDER = Path(__file__).parent.parent / "golden"
PAGE = 4096
SUPERBLOCK = 4096
DICTIONARY = b"".join(hashlib.sha256(b"dictionary" + bytes([i])).digest() for i in range(64))


def make_page(number: int, turn: int) -> bytes:
    """Text, or noise, or a page that begins with noise and is zeros then."""
    noise = b"".join(hashlib.sha256(f"{number} {turn} {i}".encode()).digest() for i in range(PAGE // 32))
    match number % 3:
        case 0:
            return (f"page {number} turn {turn} ".encode() * PAGE)[:PAGE]
        case 1:
            return noise
        case _:
            return noise[:500].ljust(PAGE, b"\0")


@dataclass(frozen=True)
class Golden:
    """A file: how many bytes its image has, which pages were written in which turn, and what made it."""

    size: int
    turns: tuple[tuple[int, ...], ...]
    make: Callable[[Golden, Path], None]
    dictionary: bytes | None = None

    def image(self) -> bytes:
        image = bytearray(self.size)
        for turn, pages in enumerate(self.turns):
            for page in pages:
                end = min(self.size, (page + 1) * PAGE)
                image[page * PAGE : end] = make_page(page, turn)[: end - page * PAGE]
        return bytes(image)


def write_turn(store: ZstdStore, golden: Golden, turn: int) -> None:
    for page in golden.turns[turn]:
        content = make_page(page, turn)[: golden.size - page * PAGE]
        store.write(page * PAGE, content)
    store.flush()


def make_written(golden: Golden, path: Path) -> None:
    with ZstdStore(path, "x", size=golden.size, page_size=PAGE, dictionary=golden.dictionary) as store:
        for turn in range(len(golden.turns)):
            write_turn(store, golden, turn)


def make_interrupted(golden: Golden, path: Path) -> None:
    """A crash came between the superblocks of the last flush."""
    with ZstdStore(path, "x", size=golden.size, page_size=PAGE) as store:
        for turn in range(len(golden.turns)):
            with path.open("rb") as file:
                before = file.read(2 * SUPERBLOCK)[SUPERBLOCK:]
            write_turn(store, golden, turn)
    with path.open("r+b") as file:
        file.seek(SUPERBLOCK)
        file.write(before)


def make_packed(golden: Golden, path: Path) -> None:
    """Packed, then its last turn written."""
    whole = Golden(golden.size, golden.turns[:-1], make_written)
    pack_file(whole, path)
    with ZstdStore(path, "r+") as store:
        write_turn(store, golden, len(golden.turns) - 1)


def make_adopted(golden: Golden, path: Path) -> None:
    """Made of a plain seekable file of frames that are no pages, then its last turn written."""
    import zstandard

    image = Golden(golden.size, golden.turns[:-1], make_written).image()
    compress = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True).compress
    path.write_bytes(b"".join(compress(image[at : at + 5000]) for at in range(0, len(image), 5000)))
    with ZstdStore(path, "r+", page_size=PAGE) as store:
        write_turn(store, golden, len(golden.turns) - 1)


def pack_file(golden: Golden, path: Path) -> None:
    with ZstdPack(str(path), page_size=PAGE, level=3, dictionary=b"") as pack:
        pack.write(golden.image())


GOLDEN = {
    # Pages far apart, so that the index has two levels; some written again, one to its zeros.
    "levels": Golden(300 * PAGE, ((0, 1, 2, 200, 299), (1, 2, 298), (0, 200)), make_written),
    "dictionary": Golden(3 * PAGE + 77, ((0, 1, 2, 3), (1, 3)), make_written, DICTIONARY),
    "interrupted": Golden(4 * PAGE, ((0, 1, 2, 3), (2,), (0, 3)), make_interrupted),
    "packed_written": Golden(4 * PAGE + 9, ((0, 1, 3, 4), (1, 2)), make_packed),
    "adopted": Golden(5 * PAGE + 123, ((0, 1, 2, 4, 5), (1, 5)), make_adopted),
}
VERSION = 1
"""Of the format, as umappy writes it. A new one gets files of its own; the older stay, and are read for ever."""


def find_file(version: int, name: str) -> Path:
    return FOLDER / f"zstd_store_{version}_{name}.zst.xz"


def unpack_golden(version: int, name: str, path: Path) -> None:
    path.write_bytes(lzma.decompress(find_file(version, name).read_bytes()))


def main() -> None:
    for name, golden in GOLDEN.items():
        target = find_file(VERSION, name)
        if target.exists():
            continue
        folder = Path(tempfile.mkdtemp())
        golden.make(golden, folder / "x.zst")
        target.write_bytes(lzma.compress((folder / "x.zst").read_bytes(), preset=9))
        shutil.rmtree(folder)
        print(target, target.stat().st_size)


if __name__ == "__main__":
    main()

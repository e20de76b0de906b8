"""docs/format.md against a real file: its example byte by byte, and a reader written from the page alone."""

import hashlib
import re
import struct
from pathlib import Path

import pytest
import zstandard

from umappy.stores import ZstdStore

ROOT = Path(__file__).parent.parent
LOG, PACKED = (ROOT / "tests/golden" / name for name in ("zstd_store_1.zst", "zstd_store_1_packed.zst"))
LINE = re.compile(r"^([0-9a-f]{6})  ((?:[0-9a-f]{2} )+) +\S", re.MULTILINE)
PRIMES = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
MASK = (1 << 64) - 1


def make_image() -> bytes:
    noise = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(26))[:808]
    return (b"umappy " * 586)[:4096] + bytes(4096) + noise


def rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & MASK


def xxh64(data: bytes, seed: int) -> int:
    p1, p2, p3, p4, p5 = PRIMES

    def mix(lane: int, word: int) -> int:
        return rotate((lane + word * p2) & MASK, 31) * p1 & MASK

    at = 0
    value = (seed + p5) & MASK
    if len(data) >= 32:
        lanes = [(seed + p1 + p2) & MASK, (seed + p2) & MASK, seed, (seed - p1) & MASK]
        for at in range(0, len(data) - 31, 32):
            lanes = [mix(lane, word) for lane, word in zip(lanes, struct.unpack_from("<4Q", data, at), strict=True)]
        at += 32
        value = sum(rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for lane in lanes:
            value = ((value ^ mix(0, lane)) * p1 + p4) & MASK
    value = (value + len(data)) & MASK
    while len(data) - at >= 8:
        value = (rotate(value ^ mix(0, struct.unpack_from("<Q", data, at)[0]), 27) * p1 + p4) & MASK
        at += 8
    if len(data) - at >= 4:
        value = (rotate(value ^ struct.unpack_from("<I", data, at)[0] * p1 & MASK, 23) * p2 + p3) & MASK
        at += 4
    for byte in data[at:]:
        value = rotate(value ^ byte * p5 & MASK, 11) * p1 & MASK
    value = (value ^ value >> 33) * p2 & MASK
    value = (value ^ value >> 29) * p3 & MASK
    return value ^ value >> 32


class Reader:
    """What docs/format.md says, in Python."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        supers = [block for block in (data[:4096], data[4096:8192]) if self.is_good(block)]
        self.super = max(supers, key=lambda block: struct.unpack_from("<Q", block, 40)[0])
        (self.seed,) = struct.unpack_from("<Q", self.super, 24)
        (self.size,) = struct.unpack_from("<Q", self.super, 48)
        (self.page_size,) = struct.unpack_from("<I", self.super, 56)
        offset, length, self.levels, checksum = struct.unpack_from("<QIIQ", self.super, 104)
        self.root = self.read_record(offset, length, checksum, b"node", (self.levels - 1) << 56)

    @staticmethod
    def is_good(block: bytes) -> bool:
        return block[8:16] == b"umappyZS" and xxh64(block[:504], 0) == struct.unpack_from("<Q", block, 504)[0]

    def read_record(self, offset: int, length: int, tag: int, kind: bytes, number: int) -> bytes:
        record = self.data[offset : offset + length]
        checksum, found, payload, its_number, _ = struct.unpack_from("<Q4sIQQ", record)
        assert checksum == xxh64(record[8:], self.seed)
        assert checksum & (MASK if tag >> 32 else 0xFFFFFFFF) == tag
        assert found in (kind, kind.replace(b"Z", b"R"))
        assert (payload, its_number) == (length - 32, number)
        return zstandard.decompress(record[32:]) if found == b"pagZ" else record[32:]

    def find(self, page: int) -> tuple[int, int, int, int]:
        """Kind, offset, length and tag of the page's entry."""
        node = self.root
        for level in range(self.levels - 1, -1, -1):
            first, count = struct.unpack_from("<HH", node)
            at = (page >> 8 * level & 255) - first
            if not 0 <= at < count:
                return 0, 0, 0, 0
            (word,) = struct.unpack_from("<Q", node, 8 + 8 * at)
            (tag,) = struct.unpack_from("<I", node, 8 + 8 * count + 4 * at)
            (half,) = struct.unpack_from("<H", node, 8 + 12 * count + 2 * at)
            kind, offset, length = half >> 8 & 7, word & (1 << 48) - 1, word >> 48 | (half & 255) << 16
            if level > 0 and kind:
                node = self.read_record(offset, length, tag, b"node", (level - 1) << 56 | page >> 8 * level)
        return kind, offset, length, tag

    def read_page(self, page: int) -> bytes:
        kind, offset, length, tag = self.find(page)
        content = b""
        if kind == 2:
            content = self.read_record(offset, length, tag, b"pagZ", page)
        elif kind == 3:
            frame = self.data[offset : offset + length]
            assert xxh64(frame, self.seed + page & MASK) & 0xFFFFFFFF == tag
            content = zstandard.decompress(frame)
        return content.ljust(min(self.page_size, self.size - page * self.page_size), b"\0")

    def read(self) -> bytes:
        return b"".join(self.read_page(page) for page in range(-(-self.size // self.page_size)))


def test_example_bytes_are_those_of_the_file() -> None:
    data = LOG.read_bytes()
    lines = LINE.findall((ROOT / "docs/format.md").read_text())
    assert len(lines) > 60
    for offset, text in lines:
        wanted = bytes.fromhex(text)
        at = int(offset, 16)
        assert data[at : at + len(wanted)] == wanted, offset


@pytest.mark.parametrize("path", [LOG, PACKED], ids=["log", "packed"])
def test_reader_made_from_the_page_gets_the_image(path: Path) -> None:
    assert Reader(path.read_bytes()).read() == make_image()


@pytest.mark.parametrize("path", [LOG, PACKED], ids=["log", "packed"])
def test_golden_file_is_read_by_the_store(path: Path) -> None:
    with ZstdStore(path) as store:
        content = bytearray(store.size)
        store.read_into(0, content)
        assert content == make_image()
        assert store.verify() == []
        store.verify_frames()


def test_reader_made_from_the_page_reads_files_of_today(tmp_path: Path) -> None:
    image = b"".join(hashlib.sha256(str(i).encode()).digest() * 9 for i in range(6000))
    path = tmp_path / "new.zst"
    with ZstdStore(path, "x", size=len(image) + 3000000, page_size=4096) as store:
        store.write(0, image)
        store.flush()
        store.write(4096 * 300, image[:10000])
        store.flush()
    wanted = bytearray(image.ljust(len(image) + 3000000, b"\0"))
    wanted[4096 * 300 : 4096 * 300 + 10000] = image[:10000]
    assert Reader(path.read_bytes()).read() == wanted

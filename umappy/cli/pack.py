"""`umappy pack IN OUT.zst`: a packed compressed file, from plain bytes or from a compressed file."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from umappy._sort.progress import ProgressCallback, open_report
from umappy.cli.compressed import BLOCK, check_output, is_compressed, open_compressed, read_dictionary_file
from umappy.cli.failure import CommandError
from umappy.sizes import format_size
from umappy.stores import ZstdStore
from umappy.stores._zstd_options import (
    LEVEL_DEFAULT,
    PAGE_SIZE_DEFAULT,
    read_dictionary,
    read_level,
    read_page_size,
)
from umappy.stores._zstd_pack import ZstdPack

MAGIC_SIZE = 4

EPILOG = """\
examples:
  umappy pack array.npy array.npy.zst          then umappy.load("array.npy.zst", "r+"), or zstd -d
  umappy pack --level 19 data.zst small.zst    compress better; pages go over as they are where nothing changes
  umappy pack data.zst data.zst                in place: frees what was overwritten
  producer | umappy pack - data.zst
  umappy pack data.bin - | ssh host 'cat > data.zst'

OUT appears, whole and durable, when all is done. To stdout goes a plain file of zstd's seekable format.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="compress a file so that it can be mapped, and decoded by zstd -d",
        description="Makes a packed compressed file of plain bytes or of a .zst, on all processors, in little memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="IN", help="a plain file, a .zst, or - for plain bytes from stdin")
    parser.add_argument("output", metavar="OUT.zst", help="what to make, or - for stdout")
    parser.add_argument("--level", type=int, help="1 to 22, or below 0 for more speed (default: that of IN, else 3)")
    parser.add_argument("--page-size", help="bytes, such as 256KiB (default: that of IN if umappy made it, else 64KiB)")
    parser.add_argument("--dictionary", metavar="FILE", help="compress with this dictionary, which OUT will hold, too")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    dictionary = read_dictionary_file(arguments.dictionary)
    level = None if arguments.level is None else read_level(arguments.level)
    page_size = None if arguments.page_size is None else read_page_size(arguments.page_size)
    target = _check_target(arguments)
    with open_report(False if arguments.quiet else None, "packing") as report:
        if arguments.input != "-" and _is_compressed_file(arguments.input):
            _pack_compressed(arguments.input, target, dictionary, level, page_size, report)
        else:
            words = read_dictionary(dictionary)
            with (
                _open_plain(arguments.input) as source,
                ZstdPack(
                    target,
                    page_size=page_size or PAGE_SIZE_DEFAULT,
                    level=level or LEVEL_DEFAULT,
                    dictionary=words,
                ) as pack,
            ):
                _copy_plain(source, pack, report)
    if arguments.output != "-" and not arguments.quiet:
        size = os.path.getsize(arguments.output)
        print(f"{arguments.output}: {format_size(size)}", file=sys.stderr)
    return 0


def _check_target(arguments: argparse.Namespace) -> str | int:
    if arguments.output == "-":
        if os.isatty(sys.stdout.fileno()):
            raise CommandError("stdout is a terminal: send it to a file or a pipe", 2)
        return sys.stdout.fileno()
    if not _is_same(arguments.input, arguments.output):
        check_output(arguments.output, overwrite=arguments.overwrite)
    elif not _is_compressed_file(arguments.input):
        raise CommandError(f"{arguments.output} is IN itself, which is not compressed: give another name for OUT", 2)
    return str(os.path.realpath(arguments.output))


def _is_same(source: str, target: str) -> bool:
    return source != "-" and os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target)


def _is_compressed_file(path: str) -> bool:
    """A pipe is not asked: what is taken from it is gone."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return False
    with open(path, "rb") as file:
        return is_compressed(file.read(MAGIC_SIZE))


def _pack_compressed(
    path: str,
    target: str | int,
    dictionary: bytes | None,
    level: int | None,
    page_size: int | None,
    report: ProgressCallback | None,
) -> None:
    with _open_source(path, target, dictionary) as store:
        unit = page_size or (PAGE_SIZE_DEFAULT if store.foreign is not None else store.page_size)
        level = level or (LEVEL_DEFAULT if store.foreign is not None else store.info().level)
        words = read_dictionary(dictionary) or (b"" if store.foreign is not None else store.read_dictionary())
        step = max(BLOCK, unit)
        with ZstdPack(target, page_size=unit, level=level, dictionary=words) as pack:
            for offset in range(0, store.size, step):
                pack.write_store(store, offset, min(step, store.size - offset))
                if report is not None:
                    report(min(offset + step, store.size), store.size)


def _open_source(path: str, target: str | int, dictionary: bytes | None) -> ZstdStore:
    """In place it is opened for writing: so nobody else writes to what is about to be replaced."""
    store = open_compressed(path, dictionary)
    if isinstance(target, int) or store.foreign is not None or not _is_same(path, target):
        return store
    store.close()
    return ZstdStore(path, "r+")


@contextmanager
def _open_plain(path: str) -> Iterator[int]:
    """A descriptor to read from."""
    if path == "-":
        if os.isatty(sys.stdin.fileno()):
            raise CommandError("stdin is a terminal: give a file's name, or send something", 2)
        yield sys.stdin.fileno()
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _copy_plain(descriptor: int, pack: ZstdPack, report: ProgressCallback | None) -> None:
    total = os.fstat(descriptor).st_size
    done = 0
    buffer = memoryview(bytearray(BLOCK))
    while count := _fill(descriptor, buffer):
        if done == 0 and is_compressed(bytes(buffer[:MAGIC_SIZE])):
            raise CommandError("what comes from stdin is compressed: give the file's name as IN, or send `umappy cat`")
        pack.write(buffer[:count])
        done += count
        if report is not None:
            report(done, max(done, total))


def _fill(descriptor: int, buffer: memoryview) -> int:
    """Reads until the buffer is full or the input ends; returns how many bytes."""
    filled = 0
    while filled < len(buffer) and (count := os.readv(descriptor, [buffer[filled:]])):
        filled += count
    return filled

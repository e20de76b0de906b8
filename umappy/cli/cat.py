"""`umappy cat FILE.zst`: the image, to stdout."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from umappy._sort.progress import open_report
from umappy.cli.compressed import add_input, map_in_order, open_input
from umappy.cli.failure import CommandError


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "cat",
        help="write what a compressed file holds to stdout",
        description="Writes to stdout what a compressed file holds now, decompressed on all processors. `zstd -d` "
        "gives what it held when it was packed.",
    )
    add_input(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    descriptor = sys.stdout.fileno()
    if os.isatty(descriptor):
        raise CommandError("stdout is a terminal: send it to a file or a pipe", 2)
    with open_input(arguments) as store:

        def read(offset: int, length: int) -> bytearray:
            buffer = bytearray(length)
            store.read_into(offset, buffer)
            return buffer

        with open_report(False if arguments.quiet else None, "decompressing") as report:
            for done, block in map_in_order(read, store.size):
                _write(descriptor, block)
                if report is not None:
                    report(done, store.size)
    return 0


def _write(descriptor: int, block: bytearray) -> None:
    left = memoryview(block)
    while len(left):
        left = left[os.write(descriptor, left) :]

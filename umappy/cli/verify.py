"""`umappy verify FILE.zst`: every page, every checksum."""

from __future__ import annotations

import argparse
from typing import Any

from umappy._sort.progress import open_report
from umappy.cli.compressed import BLOCK, add_input, map_in_order, open_input
from umappy.errors import StoreError
from umappy.sizes import format_size

EXIT_DAMAGED = 1


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="check every page of a compressed file",
        description="Reads every page of a compressed file, checks every checksum, on all processors, and lists "
        "what is damaged. Exit status: 0 whole, 1 damaged.",
    )
    add_input(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar, and nothing on stdout if it is whole")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    damaged = 0
    with open_input(arguments) as store:
        page_size = store.page_size
        try:
            store.verify_frames()
        except StoreError as failure:
            damaged += 1
            print(failure)
        with open_report(False if arguments.quiet else None, "verifying") as report:
            blocks = map_in_order(
                lambda offset, length: store.verify(offset // page_size, -(-length // page_size)),
                store.size,
                max(BLOCK, page_size),
            )
            for done, damage in blocks:
                for page, error in damage:
                    print(
                        f"page {page} (bytes {page * page_size} to {min(store.size, (page + 1) * page_size)}): {error}"
                    )
                damaged += len(damage)
                if report is not None:
                    report(done, store.size)
        if damaged:
            print(f"{arguments.input}: {damaged} damaged")
            return EXIT_DAMAGED
        if not arguments.quiet:
            print(f"{arguments.input}: whole ({format_size(store.size)})")
    return 0

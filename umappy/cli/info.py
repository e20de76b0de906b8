"""`umappy info FILE.zst`: what a compressed file holds, and whether it is packed."""

from __future__ import annotations

import argparse
from typing import Any

from umappy.cli.compressed import add_input, open_input
from umappy.cli.table import print_table
from umappy.sizes import format_size
from umappy.stores import ForeignInfo, ZstdInfo


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="tell what a compressed file holds",
        description="Tells the sizes of a compressed file, whether it is packed, and what packing would gain.",
    )
    add_input(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    path = arguments.input
    with open_input(arguments) as store:
        if store.foreign is not None:
            rows, hint = _list_foreign(store.foreign), _hint_foreign(path, store.foreign)
        else:
            info = store.info()
            rows, hint = _list_native(info), _hint_native(path, info)
    print_table(path, ("", "value"), rows)
    print(hint)
    return 0


def _list_native(info: ZstdInfo) -> list[tuple[str, str]]:
    return [
        ("made by", f"umappy, format {info.format_version}"),
        *_list_sizes(info.size, info.file_size),
        ("on the disk", _format_bytes(info.allocated)),
        ("page size", format_size(info.page_size)),
        ("level last written with", str(info.level)),
        ("packed", "yes" if info.packed else "no"),
        ("base: what zstd -d decodes", _format_bytes(info.base)),
        ("log: what was written since", f"{_format_bytes(info.log)} in {info.segments} segments"),
        ("dead: what packing frees", _format_bytes(info.dead)),
        ("generation", str(info.generation)),
        ("dictionary", _format_bytes(info.dictionary_size) if info.dictionary_size else "none"),
        ("frames adopted", str(info.foreign_frames)),
        ("damaged superblocks", str(info.damaged_superblocks)),
        ("uuid", str(info.uuid)),
    ]


def _list_foreign(info: ForeignInfo) -> list[tuple[str, str]]:
    table = "does not fit the file, not used" if info.seek_table_wrong else "yes" if info.seek_table else "no"
    return [
        ("made by", "another program"),
        *_list_sizes(info.size, info.file_size),
        ("frames", str(info.frames)),
        ("largest frame, decoded", _format_bytes(info.largest_frame)),
        ("seek table", table),
        ("decoded to learn sizes", _format_bytes(info.decoded)),
    ]


def _list_sizes(size: int, file_size: int) -> list[tuple[str, str]]:
    return [
        ("holds", _format_bytes(size)),
        ("file", _format_bytes(file_size)),
        ("ratio", f"{size / max(1, file_size):.2f}"),
    ]


def _format_bytes(count: int) -> str:
    return f"{format_size(count)} ({count})" if count >= 1024 else format_size(count)


def _hint_native(path: str, info: ZstdInfo) -> str:
    if info.packed:
        return "Packed: zstd -d gives all of it, and readers of the seekable format read it at random."
    return f"Not packed: zstd -d gives what it held when it was last packed. To pack it: umappy pack {path} {path}"


def _hint_foreign(path: str, info: ForeignInfo) -> str:
    if info.frames > 1 and (info.seek_table or not info.decoded):
        return "Reads at random by its frames. Opening it for writing makes it umappy's own, with these frames."
    return f"To make a file of it that opens at once and reads at random: umappy pack {path} OUT.zst"

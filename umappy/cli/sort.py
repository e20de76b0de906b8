"""`umappy sort IN [OUT]`: sorts a file of fixed-size elements."""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from umappy._sort.scratch import free_bytes
from umappy._umap import umap
from umappy.cli.failure import CommandError
from umappy.config import Config, config
from umappy.open_store import is_url, open_store
from umappy.pager import Pager
from umappy.region import Region
from umappy.sizes import format_size
from umappy.sort import sort
from umappy.stores import FileStore, Store

NPY_MAGIC = b"\x93NUMPY"

EPILOG = """\
examples:
  umappy sort numbers.bin sorted.bin --dtype float64 --memory 1GiB
  umappy sort records.bin --in-place --dtype "[('key', 'S10'), ('value', 'S90')]" --order key

The order is numpy's: NaN and NaT last, records by the fields of --order, then by their other fields. Sorting needs as
much free disk as the input for scratch, and once more for OUT. When it fails or is interrupted, IN is whole if OUT was
given, and OUT is gone; in place, the message says what state IN is in.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "sort",
        help="sort a file larger than memory",
        description="Sorts a file of fixed-size elements that may be far larger than memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="IN", help="file of elements, without a header, or nbd://host/export")
    parser.add_argument("output", metavar="OUT", nargs="?", help="file for the result, which must not exist")
    parser.add_argument("--in-place", action="store_true", help="sort IN itself (instead of OUT)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--dtype", default="int64", help="numpy dtype of the elements (default: %(default)s)")
    parser.add_argument("--order", help="field, or fields with commas between, to compare first")
    parser.add_argument("--memory", help="bytes of memory to use, such as 1GiB (default: half of what is available)")
    parser.add_argument("--scratch-dir", help="folder for scratch (default: that of the result)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    dtype = parse_dtype(arguments.dtype)
    memory = config.resolve(Config.memory, arguments.memory)
    if (arguments.output is None) != arguments.in_place:
        raise CommandError("give OUT, or --in-place to sort IN itself, and not both", 2)
    size = _check_input(arguments.input, dtype)
    if arguments.output is not None:
        _check_output(arguments.input, arguments.output, arguments.overwrite)
    if size == 0:
        if arguments.output is not None:
            open(arguments.output, "wb").close()
        return 0
    _check_space(arguments, size, memory)
    order = arguments.order.split(",") if arguments.order else None
    progress = False if arguments.quiet else None
    options: dict[str, Any] = {"order": order, "progress": progress, "scratch_dir": arguments.scratch_dir}
    with Pager(memory=memory) as pager:
        if arguments.output is None:
            with umap(_open_input(arguments.input, "r+"), pager=pager) as region:
                sort(np.frombuffer(region, dtype), **options)
            return 0
        with (
            umap(_open_input(arguments.input, "r"), pager=pager) as source,
            _open_output(arguments.output, size, pager) as target,
        ):
            sort(np.frombuffer(source, dtype), out=np.frombuffer(target, dtype), **options)
    return 0


def parse_dtype(text: str) -> np.dtype[Any]:
    """Returns the dtype for a name such as "float64", ">i4", "S10,f8", or a list of fields as Python writes it."""
    try:
        dtype = np.dtype(ast.literal_eval(text) if text.lstrip()[:1] in {"[", "{"} else text)
    except (TypeError, ValueError, SyntaxError) as error:
        raise CommandError(
            f"--dtype is {text!r}, which numpy does not know ({error}): give a name such as float64, S10 or '>i4', "
            "or fields as in \"[('key', 'S10'), ('value', 'f8')]\"",
            2,
        ) from None
    if dtype.itemsize == 0:
        raise CommandError(f"--dtype is {text!r}, whose elements have no bytes: give a length, as in S10", 2)
    return dtype


def _open_input(path: str, mode: str) -> Store:
    """Whatever a path ends in, its bytes are sorted as they are."""
    return open_store(path, mode) if is_url(path) else FileStore(path, mode)


def _check_input(path: str, dtype: np.dtype[Any]) -> int:
    if is_url(path):
        with _open_input(path, "r") as store:
            size = store.size
            magic = bytearray(min(len(NPY_MAGIC), size))
            store.read_into(0, magic)
    else:
        with open(path, "rb") as file:
            magic = bytearray(file.read(len(NPY_MAGIC)))
            size = file.seek(0, os.SEEK_END)
    if magic == NPY_MAGIC:
        raise CommandError(
            f"{path} is a .npy file, whose header would be sorted too: in Python, "
            "umappy.sort(np.frombuffer(umappy.umap(path, mode='r+'), dtype, offset=128)) sorts its data"
        )
    if size % dtype.itemsize:
        raise CommandError(
            f"{path} has {size} bytes, which is no multiple of {dtype.itemsize}, the size of an element of --dtype "
            f"{dtype}: give the dtype the file was written with"
        )
    return size


def _check_output(source: str, output: str, overwrite: bool) -> None:
    if not os.path.exists(output):
        return
    if not is_url(source) and os.path.samefile(source, output):
        raise CommandError(f"{output} is IN itself: leave OUT away and give --in-place", 2)
    if not overwrite:
        raise CommandError(f"{output} exists: give --overwrite to replace it, or another name")


def _check_space(arguments: argparse.Namespace, size: int, memory: int) -> None:
    """Counts what will be needed on each file system, so that hours of work do not end in a full disk."""
    name = arguments.output or arguments.input
    result = config.temp_dir if is_url(name) else os.path.dirname(os.path.abspath(name))
    wanted = [(result, size)] if arguments.output else []
    if size > memory // 2:
        wanted.append((arguments.scratch_dir or result, size))
    if arguments.scratch_dir and not os.path.isdir(arguments.scratch_dir):
        raise CommandError(f"--scratch-dir is {arguments.scratch_dir!r}: there is no such folder", 2)
    needs: dict[int, tuple[str, int]] = {}
    for folder, count in wanted:
        device = os.stat(folder).st_dev
        needs[device] = (folder, needs.get(device, ("", 0))[1] + count)
    for folder, count in needs.values():
        if (free := free_bytes(folder)) < count:
            raise CommandError(
                f"{folder} has {format_size(free)} free, and the sort needs {format_size(count)} there: make room, or "
                "name another folder with --scratch-dir"
            )


@contextlib.contextmanager
def _open_output(path: str, size: int, pager: Pager) -> Iterator[Region]:
    """The file for the result; on failure it is gone again."""
    region = umap(FileStore(path, "w+", size=size), pager=pager)
    try:
        yield region
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        region.close(discard=True)
        raise
    region.close()

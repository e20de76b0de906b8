"""`umappy doctor`: what this machine offers, and how to get more."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from umappy import limits
from umappy._engine import ffi, lib
from umappy._umap import PAGE_SIZE_AUTO
from umappy.cli.table import print_table
from umappy.config import config
from umappy.errors import StoreError, UffdUnavailableError, UmapError
from umappy.pager import Pager
from umappy.sizes import format_size
from umappy.stores._openssl_library import OpensslLibrary, find_openssl_library
from umappy.stores._zstd_library import ZstdLibrary, find_zstd_library

WAYS = {
    "device": (lib.UM_UFFD_DEVICE, "/dev/userfaultfd"),
    "syscall": (lib.UM_UFFD_SYSCALL, "the system call"),
    "user-mode-only": (lib.UM_UFFD_USER_MODE_ONLY, "the system call, for user mode"),
}
# Bits of the kernel's UFFD_FEATURE_... and since when.
FEATURES = {
    "write protection": (0, "5.7"),
    "exact fault addresses": (11, "5.18"),
    "write protection of absent pages": (13, "6.4"),
    "poisoned pages": (14, "6.6"),
    "asynchronous write protection": (15, "6.7"),
    "moving pages": (16, "6.8"),
}
# What umappy uses; the others are for later versions.
NEEDED = "write protection"
TRIAL_MEMORY = 8 << 20


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="tell what this machine offers",
        description="Tells which ways to userfaultfd work, what the kernel can do, and the defaults that follow. "
        "Exit status 1 if umappy cannot work here.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    features: int | None = None
    error = 0
    rows = []
    for name, (way, description) in WAYS.items():
        found, answer = _probe(way)
        if answer >= 0:
            features = found if features is None else features
            rows.append((f"{name} ({description})", "works"))
        else:
            error = error or -answer
            rows.append((f"{name} ({description})", f"no: {os.strerror(-answer)}"))
    print_table("Ways to userfaultfd, in the order they are tried", ("way", "here"), rows)
    if features is not None:
        print_table(
            "What the kernel's userfaultfd can do",
            ("feature", "here"),
            [
                (f"{name} (Linux {since})", "yes" if features >> bit & 1 else "no")
                for name, (bit, since) in FEATURES.items()
            ],
        )
    limit = limits.find_memory_limit()
    print_table(
        "Defaults",
        ("setting", "value"),
        [
            ("kernel", platform.release()),
            ("Python, numpy", f"{platform.python_version()}, {np.__version__}"),
            ("processors", str(len(os.sched_getaffinity(0)))),
            ("memory that can be given", f"{format_size(limit.available)} ({limit.source})"),
            ("budget", format_size(config.memory)),
            ("fillers, evictors", f"{config.fillers}, {config.evictors}"),
            ("page size", _choose_page_size()),
            ("what leaves memory first", config.policy.name),
            ("how large runs get into memory", _choose_mechanism() if features is not None else "none"),
            ("many reads from one thread (io_uring)", _probe_io_uring()),
            ("libzstd", _find_library(find_zstd_library)),
            ("OpenSSL, for nbds://", _find_library(find_openssl_library)),
            ("scratch folder where no file names one", config.temp_dir),
        ],
    )
    if features is None:
        print(UffdUnavailableError(error))
        return 1
    if not features >> FEATURES[NEEDED][0] & 1:
        print(f"The kernel's userfaultfd lacks {NEEDED}: umappy needs Linux 5.7 or later, on x86-64 or aarch64.")
        return 1
    return 0


def _choose_page_size() -> str:
    wanted = config.page_size
    return f"{format_size(PAGE_SIZE_AUTO)} (auto)" if wanted == "auto" else format_size(wanted)


def _choose_mechanism() -> str:
    """Asks a small pager: where the setting is "auto", it measures which is faster here."""
    try:
        with Pager(TRIAL_MEMORY, fillers=1, evictors=1) as pager:
            return f"{pager.stats().mechanism} ({config.mechanism})"
    except (OSError, UmapError) as error:
        return f"no: {error}"


def _probe_io_uring() -> str:
    if config.io_uring is False:
        return "switched off"
    answer = int(lib.um_io_uring_probe())
    return "works" if answer >= 0 else f"no: {os.strerror(-answer)}"


def _find_library(find: Callable[[], ZstdLibrary | OpensslLibrary]) -> str:
    try:
        library = find()
    except (StoreError, ImportError) as error:
        return f"no: {error}"
    return f"{'.'.join(map(str, library.version))} ({library.where})"


def _probe(way: int) -> tuple[int, int]:
    """Returns the kernel's features, and a number below 0 (an errno) if this way does not work."""
    features = ffi.new("uint64_t *")
    answer = lib.um_uffd_probe(way, features)
    return int(features[0]), int(answer)

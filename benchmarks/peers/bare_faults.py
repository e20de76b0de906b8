"""What answering a thread's faults in user space costs at the least, by bare_faults.c."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.child import Meter
from harness.number_file import NumberFile

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-pthread", "-shared", "-fPIC")


@contextlib.contextmanager
def build_bare_faults() -> Iterator[str]:
    """Builds the library in a folder of its own; subprocess.CalledProcessError when that fails."""
    with tempfile.TemporaryDirectory(prefix="umappy-bench-") as folder:
        library = f"{folder}/bare_faults.so"
        subprocess.run(["gcc", *FLAGS, str(SOURCE), "-o", library], check=True)
        yield library


def gather_bare(meter: Meter, library: str, path: str, count: int, reads: int, seed: int) -> dict[str, float]:
    """OSError where the kernel refuses the userfaultfd, or the file system O_DIRECT."""
    indices = np.ascontiguousarray(NumberFile(path, count).pick(reads, seed), np.int64)
    total = ctypes.c_double(0)
    gather = ctypes.CDLL(library).bare_gather
    with meter:
        code = gather(
            os.fsencode(path), ctypes.c_void_p(indices.ctypes.data), ctypes.c_uint64(reads), ctypes.byref(total)
        )
    if code:
        raise OSError(code, os.strerror(code), path)
    return {"sum": total.value}

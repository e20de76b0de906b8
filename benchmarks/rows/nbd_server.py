"""The server of the rows on NBD, and its clients that are not ours: nbdcopy, and libnbd by libnbd_client.c."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.bench import Bench
from harness.errors import ContenderError
from harness.number_file import MULTIPLIER, NumberFile, compute_values
from harness.rounds import Run
from harness.sample import Sample

PAGE = 64 << 10
CONNECTIONS = 4
"""What NbdStore opens by itself where the server allows several."""
DEPTH = 128
"""What one thread of NbdStore has in flight at most, on all connections together."""
READY_SECONDS = 10.0
SEED = 1
HEADER = "/usr/include/libnbd.h"
SOURCE = Path(__file__).parents[1] / "libnbd_client.c"


def find_missing() -> list[str]:
    """Returns what is needed here and is not installed."""
    missing = [name for name in ("nbdkit", "nbdcopy", "gcc") if shutil.which(name) is None]
    return missing if Path(HEADER).exists() else [*missing, HEADER]


@dataclass(frozen=True)
class Server:
    """A server that runs, of `numbers`."""

    uri: str
    numbers: NumberFile
    client: str
    """The program of libnbd_client.c."""

    @property
    def pages(self) -> int:
        return self.numbers.size // PAGE

    def prepare_libnbd(self, how: str, count: int, *, connections: int = 1, depth: int = 1) -> Run:
        """Returns libnbd as a contender: `count` reads of 64 KiB, "random", "sequential" or "single".

        Its samples have the seconds of all, and as a value the median of single ones.
        """
        words = [self.client, self.uri, how, *map(str, (connections, depth, PAGE, count, SEED))]
        order = np.arange(count, dtype=np.uint64)
        pages = (order if how == "sequential" else _draw(order)) % np.uint64(self.pages)
        first = compute_values(pages.astype(np.int64) * (PAGE // 8))
        total = int(first.view(np.uint64).byteswap().sum(dtype=np.uint64))
        return functools.partial(_run_client, words, total)

    def prepare_nbdcopy(self) -> Run:
        """Returns nbdcopy, which throws away what it reads, as a contender."""
        return functools.partial(_run_timed, ["nbdcopy", self.uri, "null:"])


def _draw(order: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The numbers that the client draws: splitmix64."""
    z = (order + np.uint64(1)) * MULTIPLIER + np.uint64(SEED)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def _run_client(words: list[str], total: int) -> Sample:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ContenderError(f"{words[0]} failed: {done.stderr.strip()}")
    seconds, found, median = done.stdout.split()
    if int(found) != total:
        raise ContenderError(f"wrong result: the sum is {found}, not {total}")
    return Sample(seconds=float(seconds), values={"median": float(median)})


def _run_timed(words: list[str]) -> Sample:
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ContenderError(f"{words[0]} failed: {done.stderr.strip()}")
    return Sample(seconds=time.perf_counter() - start)


@contextlib.contextmanager
def open_server(bench: Bench, *filters: str) -> Iterator[Server]:
    """Starts nbdkit over a file of `bench.size`; what holds a "=" in `filters` is a parameter."""
    names = [f"--filter={word}" for word in filters if "=" not in word]
    parameters = [word for word in filters if "=" in word]
    with tempfile.TemporaryDirectory(prefix="umappy-bench-", dir="/dev/shm") as folder:
        numbers = NumberFile(f"{folder}/numbers", bench.size // 8)
        numbers.write()
        client = f"{folder}/libnbd_client"
        flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
        subprocess.run(["gcc", *flags, str(SOURCE), "-o", client, "-lnbd"], check=True)
        socket, ready = f"{folder}/socket", Path(folder, "pid")
        command = ["nbdkit", "-f", "-U", socket, "-P", str(ready), *names, "file", numbers.path, *parameters]
        with subprocess.Popen(command) as process:
            try:
                deadline = time.monotonic() + READY_SECONDS
                while not ready.exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise ContenderError(f"{' '.join(command)} does not serve")
                    time.sleep(0.01)
                yield Server(f"nbd+unix:///?socket={socket}", numbers, client)
            finally:
                process.kill()

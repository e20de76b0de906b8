"""A server of nbdkit on a unix socket: read in order, at random, and a millisecond away; beside libnbd and nbdcopy.

The server's file lies in the kernel's memory, so no device is measured. nbdkit, nbdcopy and libnbd_client.c run outside
of the memory limit, which they would not reach. nbdcopy throws away what it reads; so does libnbd in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_sum, compute_values
from harness.rounds import Run
from rows.nbd_delay import SINGLES
from rows.nbd_random import SEED, take_pages
from rows.nbd_sequential import sum_export
from rows.nbd_server import CONNECTIONS, DEPTH, PAGE, Server, find_missing, open_server

DELAY = "1ms"
LIBNBD = {f"libnbd x{count}": count for count in (1, CONNECTIONS)}
ONE_BY_ONE = "libnbd, one by one"
UNLIMITED = "outside of the memory limit"


@pytest.fixture(scope="module")
def needs_nbd() -> None:
    if missing := find_missing():
        pytest.skip(f"there is no {', '.join(missing)}: apt-get install nbdkit libnbd-bin libnbd-dev gcc")


@pytest.fixture(scope="module")
def server(bench: Bench, needs_nbd: None) -> Iterator[Server]:
    with open_server(bench) as server:
        yield server


@pytest.fixture(scope="module")
def far_server(bench: Bench, needs_nbd: None) -> Iterator[Server]:
    """A quarter as much as `server` has."""
    with open_server(dataclasses.replace(bench, size=bench.size // 4), "delay", f"delay-read={DELAY}") as server:
        yield server


def count_reads(bench: Bench) -> int:
    """As many as make half of the budget; the other half is the pager's."""
    return bench.memory // 2 // PAGE


def prepare_take(bench: Bench, server: Server) -> Run:
    reads = count_reads(bench)
    indices = np.random.default_rng(SEED).integers(0, server.pages, reads)
    expected = {"sum": float(compute_values(indices * (PAGE // 8)).sum())}
    common = {"uri": server.uri, "pages": server.pages, "reads": reads, "memory": bench.memory // 2}
    return bench.prepare(take_pages, expected=expected, **common)


def prepare_sum(bench: Bench, server: Server) -> Run:
    expected = {"sum": compute_sum(server.numbers.count)}
    return bench.prepare(sum_export, expected=expected, uri=server.uri, memory=bench.memory)


def note(contender: str) -> str | None:
    return None if contender == "umappy" else UNLIMITED


@pytest.mark.parametrize("contender", ["umappy", "nbdcopy", *LIBNBD])
def bench_sequential_sum_of_export(contest: Contest, bench: Bench, server: Server, contender: str) -> None:
    def prepare() -> dict[str, Run]:
        return {
            "umappy": prepare_sum(bench, server),
            "nbdcopy": server.prepare_nbdcopy(),
            **{
                name: server.prepare_libnbd("sequential", server.pages, connections=connections, depth=DEPTH)
                for name, connections in LIBNBD.items()
            },
        }

    contest.run("sequential sum over NBD", contender, prepare, nbytes=server.numbers.size, note=note(contender))


@pytest.mark.parametrize("contender", ["umappy", *LIBNBD])
def bench_random_take_from_export(contest: Contest, bench: Bench, server: Server, contender: str) -> None:
    reads = count_reads(bench)

    def prepare() -> dict[str, Run]:
        return {
            "umappy": prepare_take(bench, server),
            **{
                name: server.prepare_libnbd("random", reads, connections=connections, depth=DEPTH)
                for name, connections in LIBNBD.items()
            },
        }

    contest.run("take of 64 KiB rows over NBD", contender, prepare, items=reads, note=note(contender))


@pytest.mark.parametrize("contender", ["umappy", f"libnbd x{CONNECTIONS}", ONE_BY_ONE])
@pytest.mark.parametrize("work", ["sum", "take"])
def bench_export_far_away(contest: Contest, bench: Bench, far_server: Server, work: str, contender: str) -> None:
    prepare_ours, how, pages = {
        "sum": (prepare_sum, "sequential", far_server.pages),
        "take": (prepare_take, "random", count_reads(bench)),
    }[work]
    singles = min(SINGLES, pages)

    def prepare() -> dict[str, Run]:
        return {
            "umappy": prepare_ours(bench, far_server),
            f"libnbd x{CONNECTIONS}": far_server.prepare_libnbd(how, pages, connections=CONNECTIONS, depth=DEPTH),
            ONE_BY_ONE: far_server.prepare_libnbd("single", singles),
        }

    subject = {"sum": "sequential sum over NBD", "take": "take of 64 KiB rows over NBD"}[work]
    contest.run(
        subject,
        contender,
        prepare,
        axis={"delay": DELAY},
        items=pages,
        seconds=(lambda sample: sample.seconds * pages / singles) if contender == ONE_BY_ONE else None,
        note=f"{UNLIMITED}; from {singles} reads" if contender == ONE_BY_ONE else note(contender),
    )

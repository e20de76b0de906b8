"""What tests of lost NBD servers share. TIMEOUT is short, so that they are quick: it is the grace period, too."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from forgetful_nbd import WRITE, ForgetfulServer, Request
from umappy import errors
from umappy.stores.nbd import NbdStore
from umappy.stores.testing import read, write

PAGE = 4096
SIZE = 64 * PAGE
TIMEOUT = 1.0
RETRY = 20.0
SOON = 0.8 * TIMEOUT
"""Less than the grace period: who is done by then has not waited for it."""
A, B, C = (bytes([letter]) * PAGE for letter in b"ABC")

OpenStore = Callable[..., NbdStore]


class Once:
    """A script that gives one verdict on the first request of a kind, at an offset, and serves all else."""

    def __init__(self, kind: int, verdict: str | int, offset: int | None = None) -> None:
        self.kind, self.verdict, self.offset = kind, verdict, offset
        self.met = False

    def __call__(self, request: Request) -> str | int:
        if self.met or request.type != self.kind or self.offset not in {None, request.offset}:
            return "serve"
        self.met = True
        return self.verdict


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def measure(call: Callable[[], object]) -> float:
    """How many seconds the call takes."""
    started = time.monotonic()
    call()
    return time.monotonic() - started


def lose_write(server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor, verdict: str) -> "Future[None]":
    """Begins to write A to page 0, which is lost with its connection; returns when there is a new one."""
    server.script = script = Once(WRITE, verdict, 0)
    seen = server.connections
    writing = pool.submit(write, store, 0, A)
    wait_until(lambda: script.met and server.connections > seen)
    return writing


def go_away(server: ForgetfulServer, store: NbdStore, *, silent: bool = False) -> None:
    """The server forgets, and comes back for nobody; the store has noticed."""
    server.refusing, server.silent = not silent, silent
    server.crash()
    with pytest.raises(errors.StoreTimeoutError):
        read(store, SIZE - PAGE, PAGE)

"""NbdStore and a server that is lost at the worst moment: nothing acknowledged is gone, nothing old comes back, nobody
waits longer than was said.

The server here forgets, hangs and disconnects on command (tests/helpers/forgetful_nbd.py); test_nbd_kill.py does the
like to real ones. A write that was under way when its connection was lost is settled after the grace period, which is
`timeout_seconds`: TIMEOUT here, so that tests are quick.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from forgetful_nbd import (
    CAN_FLUSH,
    CAN_FUA,
    CAN_MULTI,
    CAN_TRIM,
    CAN_ZERO,
    EIO,
    ENOSPC,
    FLUSH,
    HAS_FLAGS,
    READ,
    READ_ONLY,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    ForgetfulServer,
    Request,
)
from nbd_servers import insist
from umappy import errors
from umappy.stores.nbd import NbdStore
from umappy.stores.testing import make_bytes, read, write

PAGE = 4096
SIZE = 64 * PAGE
TIMEOUT = 1.0
RETRY = 20.0
SOON = 0.8 * TIMEOUT
"""Less than the grace period: who is done by then has not waited for it."""
A, B, C = (bytes([letter]) * PAGE for letter in b"ABC")

OpenStore = Callable[..., NbdStore]


@pytest.fixture
def server() -> Iterator[ForgetfulServer]:
    with ForgetfulServer(SIZE) as server:
        yield server


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    with ExitStack() as stack:

        def open_store(server: ForgetfulServer, mode: str = "r+", **options: Any) -> NbdStore:
            options = {"timeout_seconds": TIMEOUT, "retry_seconds": RETRY} | options
            return stack.enter_context(NbdStore(server.uri, mode, **options))

        yield open_store


@pytest.fixture
def store(server: ForgetfulServer, open_store: OpenStore) -> NbdStore:
    return open_store(server)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


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


# What the server forgot


def test_write_that_was_not_flushed_survives_a_crash_of_the_server(server: ForgetfulServer, store: NbdStore) -> None:
    data = make_bytes(1, SIZE)
    write(store, 0, data)
    server.crash()
    assert server.image != data
    assert read(store) == data
    store.flush()
    assert server.durable == data


def test_writes_to_one_place_come_back_in_their_order(server: ForgetfulServer, store: NbdStore) -> None:
    write(store, 0, A + A + A)
    write(store, PAGE, B)
    write(store, 0, C)
    server.crash()
    assert read(store, 0, 3 * PAGE) == C + B + A


def test_what_was_flushed_is_not_written_again(server: ForgetfulServer, store: NbdStore) -> None:
    write(store, 0, A)
    assert store.info().unflushed >= PAGE
    store.flush()
    assert store.info().unflushed == 0
    write(store, PAGE, B)
    before = server.count(WRITE)
    server.crash()
    assert read(store, 0, 2 * PAGE) == A + B
    assert server.count(WRITE) == before + 1


def test_zeros_and_discards_come_back_as_they_were(server: ForgetfulServer, store: NbdStore) -> None:
    write(store, 0, A + B)
    store.flush()
    write(store, 0, bytes(PAGE))
    assert server.count(WRITE_ZEROES) == 1
    server.crash()
    assert read(store, 0, 2 * PAGE) == bytes(PAGE) + B
    assert server.count(WRITE_ZEROES) == 2


def test_late_second_try_does_not_undo_a_newer_write(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    """What was acknowledged, forgotten, and lost once more while it was written again, may be done later, too."""
    write(store, 0, A)
    server.script = script = Once(WRITE, "late", 0)
    server.crash()
    read(store, PAGE, PAGE)
    wait_until(lambda: script.met and server.connections == 3)
    new = pool.submit(write, store, 0, B)
    time.sleep(SOON)
    assert server.do_late() == 1
    new.result(RETRY)
    assert read(store, 0, PAGE) == B


def test_acknowledged_writes_come_back_without_a_grace_period(server: ForgetfulServer, store: NbdStore) -> None:
    write(store, 0, A)
    server.crash()
    assert measure(lambda: read(store, 0, PAGE)) < SOON
    assert measure(store.flush) < SOON


def test_server_without_flush_is_believed_at_once(open_store: OpenStore) -> None:
    with ForgetfulServer(SIZE, flags=HAS_FLAGS) as server:
        store = open_store(server)
        write(store, 0, A)
        assert store.info().unflushed == 0
        store.flush()
        assert server.count(FLUSH) == 0


def test_server_without_flush_but_fua_makes_each_write_durable(open_store: OpenStore) -> None:
    with ForgetfulServer(SIZE, flags=HAS_FLAGS | CAN_FUA | CAN_ZERO) as server:
        store = open_store(server)
        write(store, PAGE, A)
        write(store, 0, A)
        write(store, 0, bytes(PAGE))
        server.crash()
        assert read(store, 0, 2 * PAGE) == bytes(PAGE) + A
        assert all(request.is_fua for request in server.requests if request.type != READ)


def test_server_with_flush_is_not_asked_for_fua(server: ForgetfulServer, open_store: OpenStore) -> None:
    server.flags |= CAN_FUA
    write(open_store(server), 0, A)
    assert not any(request.is_fua for request in server.requests)


# What was under way


@pytest.mark.parametrize("verdict", ["deaf", "mute"])
def test_write_under_way_is_made_good_after_the_grace_period(
    server: ForgetfulServer, store: NbdStore, verdict: str
) -> None:
    server.script = Once(WRITE, verdict)
    assert measure(lambda: write(store, 0, A)) > SOON
    store.flush()
    assert server.durable[:PAGE] == A


def test_write_under_way_is_read_back_after_it_was_written_again(server: ForgetfulServer, store: NbdStore) -> None:
    server.script = Once(WRITE, "deaf")
    write(store, 0, A)
    assert [request.type for request in server.requests if request.offset == 0] == [WRITE, WRITE, READ]


@pytest.mark.parametrize(("data", "kind"), [(A, WRITE), (bytes(PAGE), WRITE_ZEROES)], ids=["bytes", "zeros"])
def test_write_that_does_not_read_back_is_written_once_more(
    server: ForgetfulServer, store: NbdStore, data: bytes, kind: int
) -> None:
    lost = Once(kind, "deaf")

    def spoil(request: Request) -> str | int:
        if lost.met and request.type == READ and request.offset == 0 and server.count(kind) == 2:
            server.image[:PAGE] = C
        return lost(request)

    server.script = spoil
    write(store, 0, data)
    assert server.image[:PAGE] == data
    assert server.count(kind) == 3


def test_late_write_of_the_old_connection_does_not_undo_a_newer_one(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    old = lose_write(server, store, pool, "late")
    new = pool.submit(write, store, 0, B)
    time.sleep(SOON)
    assert server.do_late() == 1
    old.result(RETRY)
    new.result(RETRY)
    assert read(store, 0, PAGE) == B
    store.flush()
    assert server.durable[:PAGE] == B


def test_late_write_of_a_server_that_hung_for_long_does_not_undo_a_newer_one(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    """A stopped server finds the old bytes in its socket only when it goes on: the grace period begins then."""
    server.script = script = Once(WRITE, "late", 0)
    server.refusing = True
    old = pool.submit(write, store, 0, A)
    wait_until(lambda: script.met)
    new = pool.submit(write, store, 0, B)
    time.sleep(1.2 * TIMEOUT)
    server.refusing = False
    wait_until(lambda: server.connections == 2)
    time.sleep(0.6 * TIMEOUT)
    assert server.do_late() == 1
    old.result(RETRY)
    new.result(RETRY)
    assert read(store, 0, PAGE) == B


def test_server_that_stands_still_in_the_grace_period_gets_another(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    """It is asked for a block now and then; while it does not answer it does not come to what is old either."""
    old = lose_write(server, store, pool, "late")
    server.script = Once(READ, "hold")
    new = pool.submit(write, store, 0, B)
    server.wait_held()
    time.sleep(0.7 * TIMEOUT)
    server.release()
    time.sleep(0.6 * TIMEOUT)
    assert server.do_late() == 1
    old.result(RETRY)
    new.result(RETRY)
    assert read(store, 0, PAGE) == B


def test_flush_does_not_return_while_a_late_write_may_come(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    writing = lose_write(server, store, pool, "late")
    assert measure(store.flush) > SOON / 2
    assert server.durable[:PAGE] == A
    writing.result(RETRY)


def test_reads_wait_for_what_is_under_way_and_for_nothing_else(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    write(store, PAGE, B)
    store.flush()
    lose_write(server, store, pool, "deaf")
    waiting = pool.submit(read, store, 0, PAGE)
    assert measure(lambda: read(store, PAGE, PAGE)) < SOON / 2
    assert not waiting.done()
    assert waiting.result(RETRY) == A


def test_writes_elsewhere_go_on_during_the_grace_period(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    writing = lose_write(server, store, pool, "deaf")
    assert measure(lambda: write(store, 5 * PAGE, B)) < SOON / 2
    assert not writing.done()
    writing.result(RETRY)
    assert read(store, 5 * PAGE, PAGE) == B


@pytest.mark.parametrize("verdict", ["deaf", "mute", "hold"])
def test_flush_under_way_when_the_server_dies_covers_what_it_forgot(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor, verdict: str
) -> None:
    write(store, 0, A)
    server.script = Once(FLUSH, verdict)
    flushing = pool.submit(store.flush)
    if verdict == "hold":
        server.wait_held()
        server.crash()
    server.release()
    flushing.result(RETRY)
    assert server.count(FLUSH) == 2
    assert server.durable[:PAGE] == A
    assert store.info().unflushed == 0


def test_second_loss_while_writing_again_loses_nothing(server: ForgetfulServer, store: NbdStore) -> None:
    data = make_bytes(2, SIZE)
    for page in range(SIZE // PAGE):
        write(store, page * PAGE, data[page * PAGE :][:PAGE])
    written = server.count(WRITE)
    losses = 0

    def lose_again(request: Request) -> str:
        nonlocal losses
        if request.type == WRITE and losses < 3 and server.count(WRITE) - written > 10 * (losses + 1):
            losses += 1
            server.crash()
            return "deaf"
        return "serve"

    server.script = lose_again
    server.crash()
    assert read(store) == data
    store.flush()
    assert losses == 3
    assert server.durable == data


# Who waits, and how long


def test_caller_gives_up_while_its_write_is_still_to_be_made(
    server: ForgetfulServer, open_store: OpenStore, pool: ThreadPoolExecutor
) -> None:
    """The write's caller gets its error before the grace period ends. Its bytes are written nevertheless, and the newer
    ones after them."""
    store = open_store(server, timeout_seconds=1.5, retry_seconds=0.3)
    server.script = Once(WRITE, "deaf")
    with pytest.raises(errors.StoreTimeoutError):
        write(store, 0, A)
    assert server.count(WRITE) == 1
    insist(lambda: write(store, 0, B))
    writes = [request.data[:1] for request in server.requests if request.type == WRITE]
    assert writes == [b"A", b"A", b"B"]
    assert read(store, 0, PAGE) == B


def test_hung_request_costs_its_timeout_and_is_sent_again(server: ForgetfulServer, store: NbdStore) -> None:
    server.script = Once(READ, "ignore")
    took = measure(lambda: read(store, 0, PAGE))
    assert TIMEOUT <= took < 5 * TIMEOUT


@pytest.mark.parametrize("kind", [READ, WRITE, FLUSH])
def test_server_that_says_it_is_shutting_down_is_waited_for(
    server: ForgetfulServer, store: NbdStore, kind: int
) -> None:
    server.script = Once(kind, errno.ESHUTDOWN)
    write(store, 0, A)
    assert read(store, 0, PAGE) == A
    store.flush()
    assert server.connections == 2
    assert server.durable[:PAGE] == A


def test_server_that_is_away_costs_retry_seconds_then_an_error_that_says_why(
    server: ForgetfulServer, open_store: OpenStore
) -> None:
    store = open_store(server, retry_seconds=1.0)
    write(store, 0, A)
    server.refusing = True
    server.crash()
    for call in (lambda: read(store, 0, PAGE), lambda: write(store, PAGE, B), store.flush):
        started = time.monotonic()
        with pytest.raises(errors.StoreTimeoutError, match=r"away.*closed the connection") as caught:
            call()
        assert 0.9 < time.monotonic() - started < 3.0
        assert server.uri in str(caught.value)
    server.refusing = False
    assert insist(lambda: read(store, 0, 2 * PAGE)) == A + bytes(PAGE)
    store.flush()
    assert server.durable[:PAGE] == A


def test_server_that_lets_nobody_in_is_not_asked_all_the_time(server: ForgetfulServer, open_store: OpenStore) -> None:
    go_away(server, open_store(server, retry_seconds=2.0))
    assert 4 < server.refused < 40


def test_server_that_answers_nothing_but_greetings_is_not_asked_all_the_time(
    server: ForgetfulServer, open_store: OpenStore
) -> None:
    store = open_store(server, retry_seconds=2.0)
    server.script = lambda request: "deaf"
    with pytest.raises(errors.StoreTimeoutError):
        read(store, 0, PAGE)
    assert 4 < server.connections < 40


def test_flush_that_is_never_answered_ends_within_its_patience(server: ForgetfulServer, open_store: OpenStore) -> None:
    store = open_store(server, timeout_seconds=0.3, retry_seconds=1.0)
    write(store, 0, A)
    server.script = lambda request: "ignore" if request.type == FLUSH else "serve"
    started = time.monotonic()
    with pytest.raises(errors.StoreTimeoutError):
        store.flush()
    assert time.monotonic() - started < 5.0
    server.script = lambda request: "serve"
    insist(store.flush)
    assert server.durable[:PAGE] == A


def test_many_threads_all_get_on_after_a_loss(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    pages = [make_bytes(i, PAGE) for i in range(SIZE // PAGE)]

    def crash_sometimes(request: Request) -> str:
        if request.type == WRITE and server.crashes < 5 and request.number >= 7 + 40 * server.crashes:
            server.crash()
            return "deaf"
        return "serve"

    server.script = crash_sometimes
    list(pool.map(lambda i: write(store, i * PAGE, pages[i]), range(len(pages))))
    assert read(store) == b"".join(pages)
    store.flush()
    assert server.durable == b"".join(pages)


# What the server refuses


def test_flush_that_fails_keeps_what_the_server_threw_away(server: ForgetfulServer, store: NbdStore) -> None:
    """As Linux does: after a failed fsync the pages count as clean, and the next fsync succeeds without them."""
    write(store, 0, A)

    def fail(request: Request) -> str | int:
        if request.type != FLUSH:
            return "serve"
        server.script = lambda request: "serve"
        server.image[:] = server.durable
        return EIO

    server.script = fail
    with pytest.raises(errors.StoreError) as caught:
        store.flush()
    assert caught.value.errno == errno.EIO
    assert read(store, 0, PAGE) == A
    store.flush()
    assert server.durable[:PAGE] == A


def test_acknowledged_write_that_is_refused_later_is_kept_until_it_is_taken(
    server: ForgetfulServer, open_store: OpenStore
) -> None:
    store = open_store(server, retry_seconds=1.0)
    write(store, 0, A)
    server.script = lambda request: ENOSPC if request.type == WRITE else "serve"
    server.crash()
    read(store, PAGE, PAGE)
    for call in (store.flush, lambda: read(store, 0, PAGE), lambda: write(store, 0, B)):
        with pytest.raises(errors.StoreFullError, match="does not take it again"):
            call()
    server.script = lambda request: "serve"
    wait_until(lambda: server.image[:PAGE] == A)
    assert insist(lambda: read(store, 0, PAGE)) == A
    store.flush()
    assert server.durable[:PAGE] == A


def test_write_under_way_that_is_refused_later_is_its_callers_error(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    writing = lose_write(server, store, pool, "deaf")
    server.script = lambda request: ENOSPC if request.type == WRITE else "serve"
    with pytest.raises(errors.StoreFullError):
        writing.result(RETRY)
    server.script = lambda request: "serve"
    store.flush()
    assert store.info().unflushed == 0


# Another export


def test_export_that_lost_fua_and_never_had_flush_is_an_error(open_store: OpenStore) -> None:
    with ForgetfulServer(SIZE, flags=HAS_FLAGS | CAN_FUA) as server:
        store = open_store(server)
        server.flags = HAS_FLAGS
        server.crash()
        with pytest.raises(errors.StoreError, match="can do less"):
            write(store, 0, A)


@pytest.mark.parametrize(
    ("flags", "size", "words"),
    [
        (HAS_FLAGS | CAN_FLUSH | CAN_TRIM | CAN_ZERO, 2 * SIZE, f"{2 * SIZE} bytes, and had {SIZE}"),
        (HAS_FLAGS | CAN_FLUSH | CAN_TRIM | CAN_ZERO | READ_ONLY, SIZE, "read-only"),
        (HAS_FLAGS | CAN_TRIM | CAN_ZERO, SIZE, "can do less"),
    ],
    ids=["another size", "read-only", "without flush"],
)
def test_export_that_changed_is_an_error_for_ever(
    server: ForgetfulServer, store: NbdStore, flags: int, size: int, words: str
) -> None:
    write(store, 0, A)
    server.flags = flags
    server.resize(size)
    server.crash()
    for call in (lambda: read(store, 0, PAGE), lambda: write(store, 0, B), store.flush):
        with pytest.raises(errors.StoreError, match=words) as caught:
            call()
        assert not isinstance(caught.value, TimeoutError)
    assert server.count(WRITE) == 1
    with pytest.raises(errors.StoreError, match="1 writes that were never flushed"):
        store.close()


# The end


def test_close_while_the_server_is_away_tells_what_is_lost(server: ForgetfulServer, open_store: OpenStore) -> None:
    store = open_store(server, retry_seconds=1.0)
    write(store, 0, A)
    go_away(server, store)
    started = time.monotonic()
    with pytest.raises(errors.StoreTimeoutError, match="1 writes that were never flushed"):
        store.close()
    assert time.monotonic() - started < 3.0


def test_close_waits_until_a_server_that_comes_back_has_everything(
    server: ForgetfulServer, open_store: OpenStore, pool: ThreadPoolExecutor
) -> None:
    store = open_store(server, retry_seconds=2.0)
    write(store, 0, A)
    go_away(server, store)

    def come_back() -> None:
        time.sleep(0.2)
        server.refusing = False

    pool.submit(come_back)
    store.close()
    assert server.image[:PAGE] == A


def test_close_of_a_store_that_owes_nothing_does_not_wait_for_the_server(
    server: ForgetfulServer, open_store: OpenStore
) -> None:
    store = open_store(server, retry_seconds=0.3)
    write(store, 0, A)
    store.flush()
    go_away(server, store)
    assert measure(store.close) < 1.0


def test_close_does_not_wait_for_a_server_that_greets_nobody(server: ForgetfulServer, open_store: OpenStore) -> None:
    store = open_store(server, timeout_seconds=20.0, retry_seconds=0.3)
    go_away(server, store, silent=True)
    assert measure(store.close) < 5.0


def test_coming_back_leaves_no_descriptor_behind(server: ForgetfulServer, store: NbdStore) -> None:
    def come_back() -> int:
        seen = server.connections
        server.crash()
        read(store, 0, PAGE)
        wait_until(lambda: server.connections == seen + 1 and len(server._open) == 1)
        return len(os.listdir("/proc/self/fd"))

    before = come_back()
    assert [come_back() for _ in range(5)] == [before] * 5


def test_fork_leaves_the_parent_what_it_needs_to_come_back(server: ForgetfulServer, store: NbdStore) -> None:
    write(store, 0, A)
    child = os.fork()
    if child == 0:
        try:
            read(store, 0, PAGE)
        except errors.ForkedRegionError:
            os._exit(7)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    server.crash()
    write(store, PAGE, B)
    assert read(store, 0, 2 * PAGE) == A + B


# Several connections


def test_loss_of_one_connection_brings_back_what_the_others_were_told(
    open_store: OpenStore, pool: ThreadPoolExecutor
) -> None:
    with ForgetfulServer(SIZE, flags=HAS_FLAGS | CAN_FLUSH | CAN_MULTI) as server:
        store = open_store(server, connections=4)
        data = make_bytes(3, SIZE)
        list(pool.map(lambda i: write(store, i * PAGE, data[i * PAGE :][:PAGE]), range(SIZE // PAGE)))
        assert len({request.connection for request in server.requests}) > 1
        server.crash()
        assert read(store) == data
        store.flush()
        assert server.durable == data


def test_flush_on_one_connection_never_covers_what_another_lost(
    open_store: OpenStore, pool: ThreadPoolExecutor
) -> None:
    """The server crashes while writes go on over four connections, again and again; whoever flushes then has all that
    was acknowledged before."""
    with ForgetfulServer(SIZE, flags=HAS_FLAGS | CAN_FLUSH | CAN_MULTI) as server:
        store = open_store(server, connections=4, timeout_seconds=0.4)
        newest = [bytes(PAGE)] * (SIZE // PAGE)

        def write_share(first: int) -> None:
            for turn in range(12):
                for page in range(first, len(newest), 4):
                    newest[page] = bytes([1 + (turn * 7 + page) % 255]) * PAGE
                    write(store, page * PAGE, newest[page])

        for _ in range(3):
            writers = [pool.submit(write_share, first) for first in range(4)]
            for _ in range(3):
                time.sleep(0.05)
                server.crash()
            for writer in writers:
                writer.result(60)
            store.flush()
            assert server.durable == b"".join(newest)


# TRIM is in the list of what may be lost only while it is under way.


def test_discard_under_way_is_not_done_behind_a_newer_write(
    server: ForgetfulServer, store: NbdStore, pool: ThreadPoolExecutor
) -> None:
    write(store, 0, A)
    server.script = script = Once(TRIM, "late")
    discarding = pool.submit(store.discard, 0, PAGE)
    wait_until(lambda: script.met and server.connections == 2)
    writing = pool.submit(write, store, 0, B)
    time.sleep(SOON)
    assert server.do_late() == 1
    discarding.result(RETRY)
    writing.result(RETRY)
    assert read(store, 0, PAGE) == B

"""NbdStore and requests that were under way when their connection was lost.

They are settled after the grace period, which is `timeout_seconds`: TIMEOUT here.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from forgetful_nbd import FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, ForgetfulServer, Request
from nbd_loss import PAGE, RETRY, SIZE, SOON, TIMEOUT, A, B, C, Once, lose_write, measure, wait_until
from umappy.stores.nbd import NbdStore
from umappy.stores.testing import make_bytes, read, write


def check_late_write_undoes_nothing(
    server: ForgetfulServer, store: NbdStore, old: "Future[None]", new: "Future[None]"
) -> None:
    """The server does what it had still to do, A to page 0; B, which came after it, stays."""
    assert server.do_late() == 1
    old.result(RETRY)
    new.result(RETRY)
    assert read(store, 0, PAGE) == B


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
    check_late_write_undoes_nothing(server, store, old, new)
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
    check_late_write_undoes_nothing(server, store, old, new)


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
    check_late_write_undoes_nothing(server, store, old, new)


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

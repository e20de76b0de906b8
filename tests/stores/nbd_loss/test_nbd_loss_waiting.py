"""NbdStore and a server that is away: who waits, and how long."""

import errno
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from forgetful_nbd import FLUSH, READ, WRITE, ForgetfulServer, Request
from nbd_loss import PAGE, SIZE, TIMEOUT, A, B, Once, OpenStore, go_away, measure
from nbd_servers import insist
from umappy import errors
from umappy.stores.nbd import NbdStore
from umappy.stores.testing import make_bytes, read, write


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

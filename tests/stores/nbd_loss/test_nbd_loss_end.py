"""NbdStore whose server is lost, and the end: close, fork, descriptors."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from forgetful_nbd import ForgetfulServer
from nbd_loss import PAGE, A, B, OpenStore, go_away, measure, wait_until
from umappy import errors
from umappy.stores.nbd import NbdStore
from umappy.stores.testing import read, write


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

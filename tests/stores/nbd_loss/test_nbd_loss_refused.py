"""NbdStore and a server that returns as another, or refuses what it had taken."""

import errno
from concurrent.futures import ThreadPoolExecutor

import pytest

from forgetful_nbd import (
    CAN_FLUSH,
    CAN_FUA,
    CAN_TRIM,
    CAN_ZERO,
    EIO,
    ENOSPC,
    FLUSH,
    HAS_FLAGS,
    READ_ONLY,
    WRITE,
    ForgetfulServer,
    Request,
)
from nbd_loss import PAGE, RETRY, SIZE, A, B, OpenStore, lose_write, wait_until
from nbd_servers import insist
from umappy import errors
from umappy.stores.nbd import NbdStore
from umappy.stores.testing import read, write


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

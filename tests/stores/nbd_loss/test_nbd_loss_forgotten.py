"""NbdStore and a server that forgot: nothing acknowledged is gone, and newer bytes stay, on however many connections.

The server forgets, hangs and disconnects on command (tests/helpers/forgetful_nbd.py); test_nbd_kill.py does the like to
real ones.
"""

import time
from concurrent.futures import ThreadPoolExecutor

from forgetful_nbd import (
    CAN_FLUSH,
    CAN_FUA,
    CAN_MULTI,
    CAN_ZERO,
    FLUSH,
    HAS_FLAGS,
    READ,
    WRITE,
    WRITE_ZEROES,
    ForgetfulServer,
)
from nbd_loss import PAGE, RETRY, SIZE, SOON, A, B, C, Once, OpenStore, measure, wait_until
from umappy.stores.nbd import NbdStore
from umappy.stores.testing import make_bytes, read, write


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

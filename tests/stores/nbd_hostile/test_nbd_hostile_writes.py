"""Servers whose answers to writes and flushes are wrong, or that do wrong while nobody asks."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from struct import pack

import pytest

from hostile_nbd import IMAGE, LENGTH, OFFSET, PATIENCE_SECONDS, Answer, check_read, open_store, raw, simple
from scripted_nbd import SIMPLE_MAGIC, SIZE, TYPE_HOLE, ClientGoneError, Connection, ScriptedNbd
from umappy.errors import StoreError
from umappy.stores import NbdStore


def end_after(c: Connection, content: bytes) -> None:
    c.send(content)
    raise ClientGoneError


def check_write(bad: Answer, call: Callable[[NbdStore], object] | None = None) -> None:
    """The server's image holds what was written, whatever the first connection answered."""
    image = bytearray(SIZE)
    is_flush = call is not None

    def talk(c: Connection) -> None:
        c.negotiate()
        if c.index == 0:
            request = c.receive_request()
            while is_flush and request.kind == 1:
                image[request.offset : request.offset + request.length] = request.data
                c.send_simple(request)
                request = c.receive_request()
            bad(c, request)
            c.stay_silent()
        c.serve(image)

    with ScriptedNbd(talk) as server, open_store(server, "r+") as store:
        store.write(OFFSET, IMAGE[:LENGTH])
        if call is not None:
            call(store)
        assert image[OFFSET : OFFSET + LENGTH] == IMAGE[:LENGTH]
        assert len(server.connections) >= 2


WRITE_ANSWERS = {
    "data": lambda c, r: c.send_data(r, 0, b"x" * 10, done=True),
    "hole": lambda c, r: c.send_chunk(r, TYPE_HOLE, pack(">QI", r.offset, 10), done=True),
    "unknown cookie": simple(cookie=1 << 40),
    "garbage": raw(b"\xde\xad\xbe\xef" * 100),
    "silence": raw(b""),
    "end in between": lambda c, r: end_after(c, pack(">I", SIMPLE_MAGIC)[:3]),
}


@pytest.mark.parametrize("name", WRITE_ANSWERS)
def test_write_with_an_answer_that_is_wrong_is_written_again(name: str) -> None:
    check_write(WRITE_ANSWERS[name])


@pytest.mark.parametrize("name", WRITE_ANSWERS)
def test_flush_with_an_answer_that_is_wrong_is_done_again(name: str) -> None:
    check_write(WRITE_ANSWERS[name], NbdStore.flush)


def test_write_answered_before_it_was_sent_costs_the_connection_only() -> None:
    image = bytearray(SIZE)

    def talk(c: Connection) -> None:
        c.negotiate()
        if c.index == 0:
            first = c.receive(28)  # the head; of a megabyte that fills every buffer in between
            c.send(pack(">II", SIMPLE_MAGIC, 0) + first[8:16])
            c.pause(30)
        c.serve(image)

    with ScriptedNbd(talk) as server, open_store(server, "r+") as store:
        store.write(0, IMAGE)
        assert image == IMAGE
        assert len(server.connections) >= 2


def test_write_with_an_error_of_the_server_raises_it() -> None:
    def talk(c: Connection) -> None:
        c.negotiate()
        c.send_simple(c.receive_request(), errno.ENOSPC)
        c.serve(bytearray(SIZE))

    with ScriptedNbd(talk) as server, open_store(server, "r+") as store:
        with pytest.raises(StoreError) as raised:
            store.write(OFFSET, IMAGE[:LENGTH])
        assert raised.value.errno == errno.ENOSPC


def test_reply_to_nothing_while_nobody_asks_is_noticed_at_the_next_read() -> None:
    def talk(c: Connection) -> None:
        c.negotiate()
        if c.index == 0:
            c.send(pack(">IIQ", SIMPLE_MAGIC, 0, 12345))
            c.stay_silent()
        c.serve(bytearray(IMAGE))

    check_read(talk)


def test_reply_that_comes_twice_costs_the_connection_only() -> None:
    def talk(c: Connection) -> None:
        c.negotiate()
        if c.index == 0:
            r = c.receive_request()
            content = IMAGE[r.offset : r.offset + r.length]
            c.send_data(r, 0, content, done=True)
            c.send_data(r, 0, content, done=True)
            c.stay_silent()
        c.serve(bytearray(IMAGE))

    with ScriptedNbd(talk) as server, open_store(server) as store:
        for _ in range(3):
            buffer = bytearray(LENGTH)
            store.read_into(OFFSET, buffer)
            assert buffer == IMAGE[OFFSET : OFFSET + LENGTH]
        assert len(server.connections) == 2


def test_export_that_changed_its_size_is_an_error_for_ever() -> None:
    def talk(c: Connection) -> None:
        c.negotiate(size=SIZE if c.index == 0 else SIZE // 2)
        if c.index == 0:
            raise ClientGoneError
        c.serve(bytearray(IMAGE))

    with ScriptedNbd(talk) as server, open_store(server) as store:
        for _ in range(2):
            with pytest.raises(StoreError, match="another export is there now"):
                store.read_into(0, bytearray(LENGTH))


def test_close_of_a_store_whose_server_is_silent_ends_in_time() -> None:
    def talk(c: Connection) -> None:
        c.negotiate()
        c.stay_silent()

    with ScriptedNbd(talk) as server:
        begin = time.monotonic()
        open_store(server, "r+").close()
        assert time.monotonic() - begin < PATIENCE_SECONDS

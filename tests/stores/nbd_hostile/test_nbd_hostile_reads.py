"""Servers whose answers to reads are wrong: each costs its connection and nothing else."""

from __future__ import annotations

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from struct import pack

import pytest

from hostile_nbd import (
    IMAGE,
    LENGTH,
    OFFSET,
    PATIENCE_SECONDS,
    RETRY_SECONDS,
    SHORT_SECONDS,
    Answer,
    answer_first,
    check_read,
    chunk,
    data,
    head,
    hole,
    open_store,
    raw,
    send,
    simple,
)
from scripted_nbd import (
    CHUNK_DONE,
    CHUNK_MAGIC,
    TYPE_DATA,
    TYPE_ERROR,
    TYPE_ERROR_OFFSET,
    TYPE_HOLE,
    TYPE_NONE,
    Connection,
    Request,
    ScriptedNbd,
)
from umappy.errors import StoreError, StoreTimeoutError
from umappy.stores import NbdStore

WHOLE = b"x" * LENGTH
STRUCTURED = {
    "garbage": raw(b"\xde\xad\xbe\xef" * 100),
    "zeros": raw(b"\0" * 100),
    "text": raw(b"HTTP/1.1 500 Internal Server Error\r\n\r\n"),
    "unknown cookie": send(head(TYPE_DATA, LENGTH + 8, flags=CHUNK_DONE, cookie=1 << 40), raw(WHOLE)),
    "cookie of another slot": head(TYPE_NONE, 0, flags=CHUNK_DONE, cookie=1),
    "simple reply": simple(WHOLE),
    "more than asked": data(0, LENGTH + 1, done=True),
    "length that overflows": send(head(TYPE_DATA, 0xFFFFFFFF), lambda c, r: c.send(pack(">Q", r.offset))),
    "length that wraps": send(head(TYPE_DATA, 7), raw(b"\0" * 7)),
    "no data": send(head(TYPE_DATA, 8), lambda c, r: c.send(pack(">Q", r.offset))),
    "before it": data(-1, LENGTH, done=True),
    "behind it": data(1, LENGTH, done=True),
    "elsewhere": lambda c, r: c.send_chunk(r, TYPE_DATA, pack(">Q", (1 << 64) - 1) + WHOLE, done=True),
    "all twice": send(data(0, LENGTH), data(0, LENGTH, done=True)),
    "overlap ahead": send(data(4096, 4096), data(0, 4097, done=True)),
    "overlap behind": send(data(0, 4096), data(4095, 4097, done=True)),
    "overlap of a hole": send(hole(0, 4096), data(4095, 4097, done=True)),
    "overlap in the middle": send(data(1000, 10), data(3000, 10), data(1005, 2000)),
    "gap at the start": data(1, LENGTH - 1, done=True),
    "gap at the end": data(0, LENGTH - 1, done=True),
    "gap inside": send(data(0, 4096), data(4097, 4095, done=True)),
    "nothing": chunk(TYPE_NONE, b"", done=True),
    "half, then nothing": send(data(0, 4096), chunk(TYPE_NONE, b"", done=True)),
    "hole of no bytes": hole(0, 0, done=True),
    "hole too long": hole(0, LENGTH + 1, done=True),
    "hole that wraps": hole(4096, 0xFFFFFFFF, done=True),
    "hole before it": hole(-4096, LENGTH, done=True),
    "hole of wrong length": chunk(TYPE_HOLE, b"\0" * 11, done=True),
    "hole with more": chunk(TYPE_HOLE, b"\0" * 13, done=True),
    "none with data": chunk(TYPE_NONE, b"x", done=True),
    "none that goes on": chunk(TYPE_NONE, b""),
    "unknown content": chunk(5, b"\0" * 8, done=True),
    "unknown error too short": chunk(0x80FF, b"\0" * 5, done=True),
    "error of no bytes": chunk(TYPE_ERROR, b"", done=True),
    "error too short": chunk(TYPE_ERROR, pack(">I", errno.EIO) + b"\0", done=True),
    "error with a long message": chunk(TYPE_ERROR, pack(">IH", errno.EIO, 10) + b"short", done=True),
    "error that overflows": head(TYPE_ERROR, 0xFFFFFFFF, flags=CHUNK_DONE),
    "error that is huge": head(TYPE_ERROR, 1 << 20, flags=CHUNK_DONE),
    "error elsewhere too short": chunk(TYPE_ERROR_OFFSET, pack(">IH", errno.EIO, 0) + b"\0" * 7, done=True),
    "nothing behind data": send(lambda c, r: c.send_data(r, 0, WHOLE), lambda c, r: c.send(b"\0" * 20)),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_read_with_a_structured_reply_that_is_wrong_costs_the_connection_only(name: str) -> None:
    check_read(answer_first(STRUCTURED[name]))


SIMPLE = {
    "garbage": raw(b"\xde\xad\xbe\xef" * 100),
    "unknown cookie": simple(WHOLE, cookie=1 << 40),
    "cookie of another slot": simple(WHOLE, cookie=1),
    "structured reply": data(0, LENGTH, done=True),
    "half": simple(WHOLE[:4096]),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_read_with_a_simple_reply_that_is_wrong_costs_the_connection_only(name: str) -> None:
    check_read(answer_first(SIMPLE[name], structured=False))


@pytest.mark.parametrize("structured", [True, False])
def test_read_with_an_end_anywhere_in_the_reply_costs_the_connection_only(structured: bool) -> None:
    head_size = 28 if structured else 16
    for end in [*range(head_size + 1), head_size + LENGTH // 2, head_size + LENGTH - 1]:

        def answer(c: Connection, request: Request, end: int = end) -> None:
            c.limit = end
            if structured:
                c.send_data(request, 0, WHOLE, done=True)
            c.send_simple(request, 0, WHOLE)

        check_read(answer_first(answer, structured=structured))


def test_read_in_pieces_in_any_order_gives_the_bytes() -> None:
    """What is allowed, however odd: the tests above would pass if everything were refused."""
    places = list(range(0, LENGTH, 512))
    order = [place for start in range(5) for place in places[start::5]]

    def talk(c: Connection) -> None:
        c.negotiate()
        while True:
            r = c.receive_request()
            for place in order:
                c.send_data(r, place, IMAGE[r.offset + place : r.offset + place + 512])
            c.send_chunk(r, TYPE_NONE, b"", done=True)

    with ScriptedNbd(talk) as server, open_store(server) as store:
        buffer = bytearray(LENGTH)
        store.read_into(OFFSET, buffer)
        assert buffer == IMAGE[OFFSET : OFFSET + LENGTH]
        assert len(server.connections) == 1


def test_read_whose_reply_is_interrupted_by_another_gives_the_bytes_of_both() -> None:
    begun = threading.Event()

    def talk(c: Connection) -> None:
        c.negotiate()
        first = c.receive_request()
        content = IMAGE[first.offset : first.offset + first.length]
        c.send_data(first, 0, content[:512])
        c.pause(0.1)
        begun.set()  # its reader waits for the rest
        second = c.receive_request()
        c.send_data(second, 0, IMAGE[second.offset : second.offset + second.length], done=True)
        c.pause(0.1)
        c.send_data(first, 512, content[512:], done=True)
        c.stay_silent()

    def read(store: NbdStore, offset: int) -> bytes:
        buffer = bytearray(LENGTH)
        store.read_into(offset, buffer)
        return bytes(buffer)

    with ScriptedNbd(talk) as server, open_store(server) as store, ThreadPoolExecutor(1) as pool:
        first = pool.submit(read, store, OFFSET)
        assert begun.wait(PATIENCE_SECONDS)
        assert read(store, 3 * OFFSET) == IMAGE[3 * OFFSET :][:LENGTH]
        assert first.result() == IMAGE[OFFSET:][:LENGTH]
        assert len(server.connections) == 1


def test_read_with_a_hole_gives_zeros() -> None:
    def talk(c: Connection) -> None:
        c.negotiate()
        r = c.receive_request()
        send(data(0, 100), hole(100, LENGTH - 101), data(LENGTH - 1, 1, done=True))(c, r)
        c.stay_silent()

    with ScriptedNbd(talk) as server, open_store(server) as store:
        buffer = bytearray(b"y" * LENGTH)
        store.read_into(OFFSET, buffer)
        assert buffer == b"x" * 100 + bytes(LENGTH - 101) + b"x"


ERRORS = {
    "plain": chunk(TYPE_ERROR, pack(">IH", errno.EIO, 3) + b"bad", done=True),
    "at an offset": lambda c, r: c.send_chunk(
        r, TYPE_ERROR_OFFSET, pack(">IH", errno.EIO, 0) + pack(">Q", r.offset), done=True
    ),
    "after data": send(data(0, 4096), chunk(TYPE_ERROR, pack(">IH", errno.EIO, 0), done=True)),
    "before data": send(chunk(TYPE_ERROR, pack(">IH", errno.EIO, 0)), data(0, LENGTH, done=True)),
    "two, of which the first counts": send(
        chunk(TYPE_ERROR, pack(">IH", errno.EIO, 0)), chunk(TYPE_ERROR, pack(">IH", errno.ENOMEM, 0), done=True)
    ),
    "simple": simple(error=errno.EIO),
}


@pytest.mark.parametrize("name", ERRORS)
def test_read_with_an_error_of_the_server_raises_it_and_keeps_the_connection(name: str) -> None:
    structured = name != "simple"

    def talk(c: Connection) -> None:
        c.negotiate(structured=structured)
        ERRORS[name](c, c.receive_request())
        c.serve(bytearray(IMAGE), structured=structured)

    with ScriptedNbd(talk) as server, open_store(server) as store:
        buffer = bytearray(LENGTH)
        with pytest.raises(StoreError) as raised:
            store.read_into(OFFSET, buffer)
        assert raised.value.errno == errno.EIO
        store.read_into(OFFSET, buffer)
        assert buffer == IMAGE[OFFSET : OFFSET + LENGTH]
        assert len(server.connections) == 1


@pytest.mark.parametrize("error", [1234, 0xFFFFFFFF, 0])
def test_read_with_an_error_that_nobody_knows_raises_invalid(error: int) -> None:
    def talk(c: Connection) -> None:
        c.negotiate()
        c.send_chunk(c.receive_request(), TYPE_ERROR, pack(">IH", error, 0), done=True)
        c.stay_silent()

    with ScriptedNbd(talk) as server, open_store(server) as store:
        with pytest.raises(StoreError) as raised:
            store.read_into(OFFSET, bytearray(LENGTH))
        assert raised.value.errno == errno.EINVAL


def read_in_vain(answer: Answer, said: str) -> None:
    """Every connection is as bad: an error, in time."""

    def talk(c: Connection) -> None:
        c.negotiate()
        answer(c, c.receive_request())
        c.stay_silent()

    with (
        ScriptedNbd(talk) as server,
        NbdStore(server.uri, timeout_seconds=SHORT_SECONDS, retry_seconds=RETRY_SECONDS) as store,
    ):
        begin = time.monotonic()
        with pytest.raises(StoreTimeoutError, match=said):
            store.read_into(OFFSET, bytearray(LENGTH))
        assert time.monotonic() - begin < PATIENCE_SECONDS


def test_read_of_a_server_that_sends_garbage_every_time_ends_in_time() -> None:
    read_in_vain(raw(b"\xde\xad\xbe\xef" * 100), "does not keep to the protocol")


def test_read_of_a_server_that_falls_silent_every_time_ends_in_time() -> None:
    read_in_vain(raw(b""), "did not answer")


def test_read_of_a_server_that_drips_ends_in_time() -> None:
    """Some byte comes all the time, but the reply would take minutes."""

    def answer(c: Connection, r: Request) -> None:
        c.send(pack(">IHHQIQ", CHUNK_MAGIC, CHUNK_DONE, TYPE_DATA, r.cookie, LENGTH + 8, r.offset))
        c.drip(WHOLE, seconds=0.02)

    read_in_vain(answer, "did not answer")


def test_read_with_chunks_without_end_ends_in_time() -> None:
    def answer(c: Connection, r: Request) -> None:
        # Faster than the client reads, so that there is always something.
        many = pack(">IHHQIIH", CHUNK_MAGIC, 0, TYPE_ERROR, r.cookie, 6, errno.EIO, 0) * 50_000
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            c.send(many)

    read_in_vain(answer, "did not answer|does not keep")


def test_read_in_pieces_of_one_byte_backwards_ends_in_time() -> None:
    """Each piece is allowed; what has to be remembered of them is bounded."""

    def answer(c: Connection, r: Request) -> None:
        for place in range(LENGTH - 1, -1, -2):
            c.send_data(r, place, b"x")

    read_in_vain(answer, "stretches")

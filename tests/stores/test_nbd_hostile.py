"""Servers that are broken or mean harm: each gets an error within its deadline, and bytes that are right or none."""

from __future__ import annotations

import errno
import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from struct import pack

import pytest

from scripted_nbd import (
    CHUNK_DONE,
    CHUNK_MAGIC,
    HAS_FLAGS,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MULTI_CONN,
    OPT_ABORT,
    OPT_GO,
    OPT_STARTTLS,
    READ,
    READ_ONLY,
    REP_ACK,
    REP_ERR_POLICY,
    REP_ERR_TLS_REQD,
    REP_ERR_UNKNOWN,
    REP_INFO,
    REPLY_MAGIC,
    SEND_FLUSH,
    SIMPLE_MAGIC,
    SIZE,
    TYPE_DATA,
    TYPE_ERROR,
    TYPE_ERROR_OFFSET,
    TYPE_HOLE,
    TYPE_NONE,
    WRITE,
    ClientGoneError,
    Connection,
    Request,
    ScriptedNbd,
)
from umappy.errors import StoreError, StoreNotFoundError, StorePermissionError, StoreTimeoutError
from umappy.stores import NbdStore

# Of servers that answer, right or wrong, on a busy machine; and of those whose silence is the test.
TIMEOUT_SECONDS = 4.0
SHORT_SECONDS = 0.6
RETRY_SECONDS = 0.3
# From a call to its error, at most: all that may be waited for one after the other, and a busy machine.
PATIENCE_SECONDS = 10.0
IMAGE = bytes(i * 167 >> 8 & 0xFF for i in range(SIZE))
OFFSET, LENGTH = 4096, 8192
GO_INFO = pack(">HQH", INFO_EXPORT, SIZE, HAS_FLAGS)

Script = Callable[[Connection], None]
Answer = Callable[[Connection, Request], None]


def open_store(server: ScriptedNbd, mode: str = "r") -> NbdStore:
    """What was written may still be done by the old connection for as long as a request may take: writers wait."""
    timeout_seconds = TIMEOUT_SECONDS if mode == "r" else SHORT_SECONDS
    return NbdStore(server.uri, mode, timeout_seconds=timeout_seconds, retry_seconds=PATIENCE_SECONDS)


def refuse(uri: str, said: str, kind: type[StoreError], timeout_seconds: float = TIMEOUT_SECONDS) -> StoreError:
    """Opening fails in time, with these words and the server's name."""
    begin = time.monotonic()
    with pytest.raises(kind, match=said) as raised:
        NbdStore(uri, timeout_seconds=timeout_seconds, retry_seconds=RETRY_SECONDS)
    assert time.monotonic() - begin < PATIENCE_SECONDS
    assert uri.partition("?")[0] in str(raised.value)
    return raised.value


def refuse_to_open(script: Script, said: str, kind: type[StoreError] = StoreError) -> StoreError:
    with ScriptedNbd(script) as server:
        return refuse(server.uri, said, kind, SHORT_SECONDS if kind is StoreTimeoutError else TIMEOUT_SECONDS)


def refuse_tls(script: Script, said: str, kind: type[StoreError] = StoreError) -> list[Connection]:
    """The same of a URI that wants TLS; the connections that were made."""
    with ScriptedNbd(script) as server:
        uri = server.uri.replace("nbd+", "nbds+") + "&tls-hostname=h"
        refuse(uri, said, kind, SHORT_SECONDS if kind is StoreTimeoutError else TIMEOUT_SECONDS)
        return server.connections


# The handshake


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no NBD server"),
        (b"\0" * 18, "no NBD server"),
        (b"NBDMAGIC" + pack(">Q", 0x00420281861253) + b"\0" * 140, "no NBD server"),  # the old style
        (b"NBDMAGICIHAVEOPT" + pack(">H", 0), "old dialect"),
        (b"NBDMAG", "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_open_of_what_greets_otherwise_is_refused(greeting: bytes, said: str) -> None:
    refuse_to_open(lambda c: c.send(greeting), said)


def answer_go(*answers: tuple[int, bytes]) -> Script:
    def talk(c: Connection) -> None:
        c.greet()
        option = c.wait_for_option(OPT_GO)
        for kind, data in answers:
            c.answer(option, kind, data)
        c.stay_silent()

    return talk


def send_to_go(data: bytes) -> Script:
    def talk(c: Connection) -> None:
        c.greet()
        c.wait_for_option(OPT_GO)
        c.send(data)
        c.stay_silent()

    return talk


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (answer_go((REP_ACK, b"")), "did not tell its size"),
        (answer_go((REP_INFO, b"")), "0 bytes"),
        (answer_go((REP_INFO, b"\0")), "1 bytes"),
        (answer_go((REP_INFO, GO_INFO[:-1])), "11 bytes"),
        (answer_go((REP_INFO, GO_INFO + b"\0")), "13 bytes"),
        (answer_go((REP_INFO, pack(">HQH", INFO_EXPORT, 1 << 63, HAS_FLAGS)), (REP_ACK, b"")), str(1 << 63)),
        (answer_go((REP_INFO, pack(">HQH", INFO_EXPORT, (1 << 64) - 1, 1)), (REP_ACK, b"")), str((1 << 64) - 1)),
        (answer_go((REP_INFO, pack(">HII", INFO_BLOCK_SIZE, 1, 2))), "10 bytes"),
        (answer_go((77, b"")), "0x4d"),
        (answer_go((0x80001234, b"because")), "because"),
        (send_to_go(pack(">QIII", REPLY_MAGIC + 1, OPT_GO, REP_ACK, 0)), "begins with"),
        (send_to_go(pack(">QIII", REPLY_MAGIC, OPT_STARTTLS, REP_ACK, 0)), "for option 5"),
        (send_to_go(pack(">QIII", REPLY_MAGIC, OPT_GO, REP_INFO, 0xFFFFFFFF)), "4294967295 bytes"),
        (send_to_go(pack(">QIII", REPLY_MAGIC, OPT_GO, REP_INFO, 1 << 20) + b"x"), "1048576 bytes"),
        (answer_go(*[(REP_INFO, pack(">H", 9))] * 100000), "more than"),
    ],
)
def test_open_with_an_answer_that_makes_no_sense_is_refused(script: Script, said: str) -> None:
    refuse_to_open(script, said)


@pytest.mark.parametrize(
    "blocks", [(0, 4096, 1 << 20), (3, 4096, 1 << 20), (512, 1000, 1 << 20), (512, 256, 1 << 20), (4096, 4096, 512)]
)
def test_open_with_block_sizes_that_make_no_sense_is_refused(blocks: tuple[int, int, int]) -> None:
    refuse_to_open(lambda c: c.negotiate(blocks=blocks), "block sizes make no sense")


def test_open_of_an_export_that_is_not_there_tells_so() -> None:
    error = refuse_to_open(answer_go((REP_ERR_UNKNOWN, b"no such disk")), "no such disk", StoreNotFoundError)
    assert error.op == "open"


def test_open_of_a_server_that_wants_tls_names_the_scheme() -> None:
    refuse_to_open(answer_go((REP_ERR_TLS_REQD, b"")), "nbds", StorePermissionError)


def test_open_words_of_the_server_are_not_passed_on_where_they_could_fool_a_terminal() -> None:
    error = refuse_to_open(answer_go((REP_ERR_POLICY, b"\x1b[2Jgo away")), "policy")
    assert "\x1b" not in str(error)


def test_open_for_writing_of_a_read_only_export_is_refused() -> None:
    with (
        ScriptedNbd(lambda c: c.negotiate(flags=HAS_FLAGS | READ_ONLY)) as server,
        pytest.raises(StorePermissionError, match="read-only"),
    ):
        open_store(server, "r+")


def test_open_without_tls_of_nbds_is_refused_and_nothing_more_is_said() -> None:
    def talk(c: Connection) -> None:
        c.greet()
        c.answer(c.receive_option(), REP_ERR_POLICY)
        while True:
            c.receive_option()

    connections = refuse_tls(talk, "nothing is sent without it")
    assert len(connections) >= 1
    for connection in connections:
        said = [option.number for option in connection.options if option.number != OPT_ABORT]
        assert said == [OPT_STARTTLS]


def test_open_with_tls_that_never_begins_ends_in_time() -> None:
    def talk(c: Connection) -> None:
        c.greet()
        c.answer(c.receive_option(), REP_ACK)
        c.stay_silent()

    refuse_tls(talk, "TLS", StoreTimeoutError)


def test_open_bytes_before_the_tls_handshake_are_not_taken_for_answers() -> None:
    """Who stands between may put plain answers behind the acknowledgement."""

    def talk(c: Connection) -> None:
        c.greet()
        option = c.receive_option()
        ack = pack(">QIII", REPLY_MAGIC, OPT_STARTTLS, REP_ACK, 0)
        go = pack(">QIII", REPLY_MAGIC, OPT_GO, REP_INFO, len(GO_INFO)) + GO_INFO
        assert option.number == OPT_STARTTLS
        c.send(ack + go + pack(">QIII", REPLY_MAGIC, OPT_GO, REP_ACK, 0))
        c.stay_silent()

    refuse_tls(talk, "TLS")


def test_open_of_a_silent_server_ends_in_time() -> None:
    refuse_to_open(Connection.stay_silent, "says nothing", StoreTimeoutError)


def test_open_of_a_server_that_drips_ends_in_time() -> None:
    """Each byte comes soon enough; all of them would take a minute."""

    def talk(c: Connection) -> None:
        c.greet()
        option = c.wait_for_option(OPT_GO)
        for _ in range(1000):
            c.drip(pack(">QIII", REPLY_MAGIC, option.number, REP_INFO, 2) + pack(">H", 9), seconds=0.02)

    refuse_to_open(talk, "says nothing", StoreTimeoutError)


def test_open_of_a_server_that_ends_anywhere_in_the_handshake_is_refused() -> None:
    sent = 0

    def count(c: Connection) -> None:
        nonlocal sent
        c.limit = 1 << 20
        c.negotiate(blocks=(1, 4096, 1 << 20))
        sent = (1 << 20) - c.limit
        c.stay_silent()

    with ScriptedNbd(count) as server:
        open_store(server).close()
    assert sent > 100

    for end in range(sent):

        def talk(c: Connection, end: int = end) -> None:
            c.limit = end
            c.negotiate(blocks=(1, 4096, 1 << 20))

        refuse_to_open(talk, "closed the connection")


# Reads. The first connection is bad, later ones are good: that costs the first, and nothing else.


def answer_first(bad: Answer, *, structured: bool = True) -> Script:
    def talk(c: Connection) -> None:
        c.negotiate(structured=structured)
        if c.index == 0:
            bad(c, c.receive_request())
            c.stay_silent()
        c.serve(bytearray(IMAGE), structured=structured)

    return talk


def check_read(script: Script) -> None:
    """The bytes are right, and came over the second connection."""
    with ScriptedNbd(script) as server, open_store(server) as store:
        begin = time.monotonic()
        buffer = bytearray(LENGTH)
        store.read_into(OFFSET, buffer)
        assert buffer == IMAGE[OFFSET : OFFSET + LENGTH]
        assert len(server.connections) == 2
        assert time.monotonic() - begin < PATIENCE_SECONDS


def send(*pieces: Callable[[Connection, Request], None]) -> Answer:
    def answer(c: Connection, request: Request) -> None:
        for piece in pieces:
            piece(c, request)

    return answer


def data(start: int, length: int, *, done: bool = False) -> Answer:
    return lambda c, r: c.send_data(r, start, b"x" * length, done=done)


def hole(start: int, length: int, *, done: bool = False) -> Answer:
    return lambda c, r: c.send_chunk(r, TYPE_HOLE, pack(">QI", r.offset + start, length & 0xFFFFFFFF), done=done)


def chunk(kind: int, content: bytes, *, done: bool = False) -> Answer:
    return lambda c, r: c.send_chunk(r, kind, content, done=done)


def head(kind: int, length: int, *, flags: int = 0, cookie: int = 0) -> Answer:
    """The head of a chunk alone, with the length that it claims."""
    return lambda c, r: c.send(pack(">IHHQI", CHUNK_MAGIC, flags, kind, r.cookie ^ cookie, length))


def simple(content: bytes = b"", *, error: int = 0, cookie: int = 0) -> Answer:
    return lambda c, r: c.send(pack(">IIQ", SIMPLE_MAGIC, error, r.cookie ^ cookie) + content)


def raw(content: bytes) -> Answer:
    return lambda c, r: c.send(content)


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


# Writes and flushes


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


# In between


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


# Anything, in any order


class Chaos:
    """Keeps to the protocol in every way that it leaves open, and now and then (`evil`) does not, which ends a
    connection: pieces of replies in any order and between each other, as data or as holes."""

    def __init__(self, seed: int, evil: float) -> None:
        self.image = bytearray(SIZE)
        self._chance = random.Random(seed)
        self._evil = evil
        self._lock = threading.Lock()

    def talk(self, c: Connection) -> None:
        with self._lock:
            chance = random.Random(self._chance.random())
        c.negotiate(flags=HAS_FLAGS | SEND_FLUSH | MULTI_CONN)
        pending: list[tuple[Request, list[tuple[int, int]]]] = []
        while True:
            # Requests wait for each other now and then, so that there is something to mix.
            while c.is_asked(0 if pending and chance.random() < 0.7 else 0.01 if pending else 1):
                pending.append(self._take(c.receive_request(), chance))
            if not pending:
                continue
            if chance.random() < self._evil:
                self._harm(c, chance)
            place = chance.randrange(len(pending))
            if self._answer(c, *pending[place], chance):
                pending.pop(place)

    def _take(self, r: Request, chance: random.Random) -> tuple[Request, list[tuple[int, int]]]:
        """A request and the pieces that its reply will have."""
        if r.kind == WRITE:
            self.image[r.offset : r.offset + r.length] = r.data
        if r.kind != READ:
            return r, []
        cuts = sorted({0, r.length, *(chance.randrange(r.length) for _ in range(chance.choice([0, 0, 1, 5])))})
        pieces = list(itertools.pairwise(cuts))
        chance.shuffle(pieces)
        return r, pieces

    def _answer(self, c: Connection, r: Request, pieces: list[tuple[int, int]], chance: random.Random) -> bool:
        """Sends one more piece; whether it was the last."""
        if r.kind != READ:
            c.send_simple(r)
            return True
        start, end = pieces.pop()
        done = not pieces and chance.random() < 0.5
        content = bytes(self.image[r.offset + start : r.offset + end])
        if any(content):
            c.send_data(r, start, content, done=done)
        else:
            c.send_chunk(r, TYPE_HOLE, pack(">QI", r.offset + start, end - start), done=done)
        if not pieces and not done:
            c.send_chunk(r, TYPE_NONE, b"", done=True)
        return not pieces

    def _harm(self, c: Connection, chance: random.Random) -> None:
        c.send(chance.choice([b"", chance.randbytes(40), pack(">IIQ", SIMPLE_MAGIC, 0, chance.getrandbits(64))]))
        raise ClientGoneError


@pytest.mark.stress
@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("evil", [0, 0.003])
def test_replies_in_any_order_and_pieces_give_every_reader_its_bytes(
    connections: int, evil: float, stress_seconds: float
) -> None:
    threads, block = 4, 8192
    chaos = Chaos(seed := random.getrandbits(32), evil)
    end = time.monotonic() + stress_seconds

    def work(store: NbdStore, number: int) -> int:
        """Every fourth block is this thread's own."""
        chance = random.Random(seed + number)
        oracle = {place: bytes(block) for place in range(number, SIZE // block, threads)}
        turns = 0
        while time.monotonic() < end:
            place = chance.choice(list(oracle))
            if chance.random() < 0.3:
                oracle[place] = chance.randbytes(block) if chance.random() < 0.7 else bytes(block)
                store.write(place * block, oracle[place])
            elif chance.random() < 0.03:
                store.flush()
            else:
                start = chance.randrange(block)
                buffer = bytearray(chance.randint(1, block - start))
                store.read_into(place * block + start, buffer)
                assert buffer == oracle[place][start : start + len(buffer)], f"seed {seed}, thread {number}"
            turns += 1
        return turns

    with (
        ScriptedNbd(chaos.talk) as server,
        NbdStore(
            server.uri, "r+", connections=connections, timeout_seconds=SHORT_SECONDS, retry_seconds=PATIENCE_SECONDS
        ) as store,
        ThreadPoolExecutor(threads) as pool,
    ):
        turns = sum(pool.map(work, [store] * threads, range(threads)))
        assert turns > 4
        assert evil or store.info().reconnects == 0, f"seed {seed}"

"""What tests of broken and mean NBD servers share: scripts of answers, and checks that a call ends in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from struct import pack

import pytest

from scripted_nbd import (
    CHUNK_MAGIC,
    HAS_FLAGS,
    INFO_EXPORT,
    SIMPLE_MAGIC,
    SIZE,
    TYPE_HOLE,
    Connection,
    Request,
    ScriptedNbd,
)
from umappy.errors import StoreError, StoreTimeoutError
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

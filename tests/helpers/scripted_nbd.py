"""An NBD server that says what a test tells it to, right or wrong.

    def talk(c: Connection) -> None:
        c.negotiate(structured=True)      # the right handshake
        request = c.receive_request()
        c.send_chunk(request, TYPE_DATA, pack(">Q", 0) + b"x", done=True)

    with ScriptedNbd(talk) as server:
        store = NbdStore(server.uri, timeout_seconds=1)

Each connection runs the script in a thread of its own, and ends with it. The client may close whenever it likes; any
other exception of a script fails the test when the `with` is left.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import pack, unpack
from types import TracebackType
from typing import Self

GREETING_MAGIC = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC = b"IHAVEOPT"
REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF

OPT_EXPORT_NAME, OPT_ABORT, OPT_STARTTLS, OPT_GO, OPT_STRUCTURED_REPLY = 1, 2, 5, 7, 8
REP_ACK, REP_INFO = 1, 3
REP_ERR_UNSUP, REP_ERR_POLICY, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN = 0x80000001, 0x80000002, 0x80000005, 0x80000006
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, MULTI_CONN = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 8
READ, WRITE, DISC, FLUSH = 0, 1, 2, 3
CHUNK_DONE = 1
TYPE_NONE, TYPE_DATA, TYPE_HOLE, TYPE_ERROR, TYPE_ERROR_OFFSET = 0, 1, 2, 0x8001, 0x8002

SIZE = 1 << 20
SILENCE_SECONDS = 30.0  # longer than any client of a test waits


class ClientGoneError(Exception):
    """The client closed, or never said what was waited for."""


@dataclass(frozen=True)
class Option:
    number: int
    data: bytes


@dataclass(frozen=True)
class Request:
    flags: int
    kind: int
    cookie: int
    offset: int
    length: int
    data: bytes


class Connection:
    """One client. `index` counts connections from 0; `limit`: bytes that may still be sent before it closes."""

    def __init__(self, connected: socket.socket, index: int, stopping: threading.Event) -> None:
        self.index = index
        self.limit: int | None = None
        self.greeted = False
        self.options: list[Option] = []
        self._socket = connected
        self._stopping = stopping

    def shut(self) -> None:
        """Ends what the script waits for, from another thread."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which has the thread that receives read on without TLS.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        cut = self.limit is not None and len(data) > self.limit
        if self.limit is not None:
            data, self.limit = data[: self.limit], self.limit - min(len(data), self.limit)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ClientGoneError from error
        if cut:
            raise ClientGoneError

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            try:
                part = self._socket.recv(length - len(data))
            except OSError as error:
                raise ClientGoneError from error
            if not part:
                raise ClientGoneError
            data += part
        return data

    def drip(self, data: bytes, *, seconds: float) -> None:
        """One byte after the other, with pauses of so long."""
        for byte in data:
            self.pause(seconds)
            self.send(bytes([byte]))

    def pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise ClientGoneError

    def stay_silent(self) -> None:
        """Until the client goes; whatever it says."""
        end = time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < end:
            self.receive(1)

    def start_tls(self, context: ssl.SSLContext) -> None:
        try:
            self._socket = context.wrap_socket(self._socket, server_side=True)
        except OSError as error:
            raise ClientGoneError from error

    # The handshake

    def greet(self, flags: int = 3) -> None:
        self.send(GREETING_MAGIC + pack(">H", flags))
        self.receive(4)
        self.greeted = True

    def receive_option(self) -> Option:
        magic, number, length = unpack(">8sII", self.receive(16))
        assert magic == OPTION_MAGIC
        option = Option(number, self.receive(length))
        self.options.append(option)
        return option

    def answer(self, option: Option, kind: int, data: bytes = b"") -> None:
        self.send(pack(">QIII", REPLY_MAGIC, option.number, kind, len(data)) + data)

    def wait_for_option(self, number: int) -> Option:
        """Says of all others that it does not know them."""
        while True:
            option = self.receive_option()
            if option.number == number:
                return option
            self.answer(option, REP_ERR_UNSUP)

    def negotiate(
        self,
        *,
        size: int = SIZE,
        flags: int = HAS_FLAGS | SEND_FLUSH,
        structured: bool = True,
        blocks: tuple[int, int, int] | None = None,
    ) -> None:
        """The whole handshake, as it should be; from the options on where the greeting is over."""
        if not self.greeted:
            self.greet()
        while True:
            option = self.receive_option()
            if option.number == OPT_GO:
                break
            agreed = option.number == OPT_STRUCTURED_REPLY and structured
            self.answer(option, REP_ACK if agreed else REP_ERR_UNSUP)
        self.answer(option, REP_INFO, pack(">HQH", INFO_EXPORT, size, flags))
        if blocks is not None:
            self.answer(option, REP_INFO, pack(">HIII", INFO_BLOCK_SIZE, *blocks))
        self.answer(option, REP_ACK)

    # Requests and replies

    def is_asked(self, seconds: float) -> bool:
        """Whether a request begins to arrive within so long."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def receive_request(self) -> Request:
        magic, flags, kind, cookie, offset, length = unpack(">IHHQQI", self.receive(28))
        assert magic == REQUEST_MAGIC
        if kind == DISC:
            raise ClientGoneError
        return Request(flags, kind, cookie, offset, length, self.receive(length) if kind == WRITE else b"")

    def send_simple(self, request: Request, error: int = 0, data: bytes = b"") -> None:
        self.send(pack(">IIQ", SIMPLE_MAGIC, error, request.cookie) + data)

    def send_chunk(self, request: Request, kind: int, data: bytes = b"", *, done: bool = False) -> None:
        self.send(pack(">IHHQI", CHUNK_MAGIC, CHUNK_DONE if done else 0, kind, request.cookie, len(data)) + data)

    def send_data(self, request: Request, start: int, data: bytes, *, done: bool = False) -> None:
        """A piece of a read, from `start` bytes behind its beginning."""
        self.send_chunk(request, TYPE_DATA, pack(">Q", request.offset + start) + data, done=done)

    def serve(self, image: bytearray, *, structured: bool = True) -> None:
        """Answers requests as it should, for as long as they come."""
        while True:
            request = self.receive_request()
            if request.kind == WRITE:
                image[request.offset : request.offset + request.length] = request.data
            if request.kind != READ or not structured:
                data = image[request.offset : request.offset + request.length] if request.kind == READ else b""
                self.send_simple(request, 0, bytes(data))
            else:
                self.send_data(request, 0, image[request.offset : request.offset + request.length], done=True)


class ScriptedNbd:
    """Listens on a Unix socket and runs `script` for every connection."""

    def __init__(self, script: Callable[[Connection], None]) -> None:
        self._script = script
        self._folder = Path(tempfile.mkdtemp(prefix="nbd-"))
        self._listening = socket.socket(socket.AF_UNIX)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        self.connections: list[Connection] = []
        self.uri = f"nbd+unix:///?socket={self._folder / 'socket'}"

    def __enter__(self) -> Self:
        self._listening.bind(str(self._folder / "socket"))
        self._listening.listen(16)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for connection in self.connections:
            connection.shut()
        for thread in self._threads:
            thread.join()
        self._listening.close()
        shutil.rmtree(self._folder)
        if self._errors and error is None:
            raise self._errors[0]

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            if self._stopping.is_set():
                connected.close()
                return
            connection = Connection(connected, len(self.connections), self._stopping)
            self.connections.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: Connection) -> None:
        try:
            self._script(connection)
        except ClientGoneError:
            pass
        except Exception as error:
            self._errors.append(error)
        finally:
            connection.close()

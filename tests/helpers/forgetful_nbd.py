"""An NBD server in this process, which forgets on command: for the moments that no real server can be brought to.

It keeps two images: what its clients see, and what survives a crash, which FLUSH brings up to date. A script looks at
each request before it is done, and says what becomes of it:

    with ForgetfulServer(1 << 20) as server:
        server.script = lambda request: "late" if request.type == WRITE and request.offset == 0 else "serve"
        store = NbdStore(server.uri, "r+", timeout_seconds=1)

    "serve"    done and answered                 "ignore"   never answered, as by a server that hangs
    "late"     the connection is closed; the     "deaf"     not done, and the connection is closed
               request is done by `do_late`      "mute"     done, and the connection closed before the answer
    "hold"     done and answered, after           an int     answered with this error number, and not done
               `release` was called

Scripts run on the connection's thread, one request at a time a connection. `crash` closes all connections and forgets
what no FLUSH covered; whoever connects then finds what was left, as after a restart, unless `refusing` is set (he is
sent away) or `silent` (he is told nothing).
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
HAS_FLAGS, READ_ONLY, CAN_FLUSH, CAN_FUA, CAN_TRIM, CAN_ZERO, CAN_MULTI = 1, 2, 4, 8, 32, 64, 256
EIO, ENOSPC = 5, 28

_MAGIC, _OPTION, _OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
_GO, _ACK, _INFO, _UNSUPPORTED = 7, 1, 3, 0x80000001
_HOLD_SECONDS = 60.0


@dataclass(frozen=True)
class Request:
    connection: int  # counted from 0, over all the server's life
    type: int
    offset: int
    length: int
    data: bytes
    number: int  # of all requests, from 0
    is_fua: bool = False  # durable when it is answered


Script = Callable[[Request], str | int]


class ForgetfulServer:
    def __init__(
        self, size: int, *, flags: int = HAS_FLAGS | CAN_FLUSH | CAN_TRIM | CAN_ZERO, export: bytes = b""
    ) -> None:
        self.size, self.flags = size, flags
        self.image, self.durable = bytearray(size), bytearray(size)
        self.script: Script = lambda request: "serve"
        self.requests: list[Request] = []
        self.refusing = self.silent = False
        self.connections = self.refused = 0
        self.crashes = 0
        self.folder = Path(tempfile.mkdtemp(prefix="nbd-"))
        self.uri = f"nbd+unix:///?socket={self.folder / 'socket'}"
        self._lock = threading.RLock()
        self._released = threading.Event()
        self._held = threading.Semaphore(0)
        self._late: list[Request] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / "socket"))
        self._listener.listen(64)
        self._closing = False

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._released.set()
        self.disconnect()
        for thread in self._threads:
            thread.join(10)
        for connection in self._open:  # the silent ones
            connection.close()
        shutil.rmtree(self.folder)

    def crash(self) -> None:
        """As kill -9 and a restart: what was not flushed is forgotten."""
        with self._lock:
            self.crashes += 1
            self.image[:] = self.durable
            self.disconnect()

    def disconnect(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def do_late(self) -> int:
        """Does the writes that were put off, as a thread of the server that was slow; returns how many."""
        with self._lock:
            late, self._late = self._late, []
            for request in late:
                self._do(request)
        return len(late)

    def wait_held(self, seconds: float = 20.0) -> None:
        """Until one more request is held."""
        assert self._held.acquire(timeout=seconds), "no request was held"

    def release(self) -> None:
        """Lets those go that are held, and all that come later."""
        self._released.set()

    def count(self, kind: int) -> int:
        with self._lock:
            return sum(request.type == kind for request in self.requests)

    def resize(self, size: int) -> None:
        with self._lock:
            self.size, self.image, self.durable = size, bytearray(size), bytearray(size)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                self.refused += 1
                connection.close()
                continue
            with self._lock:
                self._open.add(connection)
                if self.silent:
                    continue
                number, self.connections = self.connections, self.connections + 1
            self._start(self._serve, connection, number)

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                self._greet(connection)
                self._answer(connection, number)
        finally:
            with self._lock:
                connection.close()
                self._open.discard(connection)

    def _greet(self, connection: socket.socket) -> None:
        connection.sendall(struct.pack(">QQH", _MAGIC, _OPTION, 3))
        _receive(connection, 4)
        while True:
            _, option, length = struct.unpack(">QII", _receive(connection, 16))
            _receive(connection, length)
            if option == _GO:
                break
            connection.sendall(struct.pack(">QIII", _OPTION_REPLY, option, _UNSUPPORTED, 0))
        information = struct.pack(">HQH", 0, self.size, self.flags)
        connection.sendall(struct.pack(">QIII", _OPTION_REPLY, _GO, _INFO, len(information)) + information)
        connection.sendall(struct.pack(">QIII", _OPTION_REPLY, _GO, _ACK, 0))

    def _answer(self, connection: socket.socket, number: int) -> None:
        while True:
            _, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", _receive(connection, 28))
            data = _receive(connection, length) if kind == WRITE else b""
            if kind == DISCONNECT:
                return
            with self._lock:
                request = Request(number, kind, offset, length, data, len(self.requests), bool(flags & 1))
                self.requests.append(request)
                script, crashes = self.script, self.crashes
            verdict = script(request)
            if verdict == "hold":
                self._held.release()
                assert self._released.wait(_HOLD_SECONDS)
                verdict = "serve"
            if verdict == "late":
                with self._lock:
                    self._late.append(request)
                return
            if verdict == "deaf":
                return
            if verdict == "ignore":
                continue
            if isinstance(verdict, int):
                connection.sendall(struct.pack(">IIQ", 0x67446698, verdict, cookie))
                continue
            with self._lock:
                if crashes != self.crashes:
                    return
                result = self._do(request)
            if verdict == "mute":
                return
            assert verdict == "serve", verdict
            connection.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + result)

    def _do(self, request: Request) -> bytes:
        end = request.offset + request.length
        match request.type:
            case 0:
                return bytes(self.image[request.offset : end])
            case 1:
                self.image[request.offset : end] = request.data
            case 3:
                self.durable[:] = self.image
            case 4 | 6:
                self.image[request.offset : end] = bytes(request.length)
        if request.is_fua:
            self.durable[request.offset : end] = self.image[request.offset : end]
        return b""


def _receive(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(min(length - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)

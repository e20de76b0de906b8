"""NBD servers for tests: nbdkit and qemu-nbd, which can be killed, stopped and started again where they were.

    with nbdkit("memory", "size=1M", filters=["delay", "delay-read=1ms"]) as server:
        store = NbdStore(server.uri, "r+")
        server.kill()     # kill -9, as a crash
        server.start()    # on the same socket or port
        server.suspend()  # SIGSTOP: connected, and silent
        server.resume()

A server listens on a unix socket in a folder of its own, or on a free port of 127.0.0.1 (`tcp=True`). Who leaves the
`with` ends it; should the test's process die first, it ends too.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import pytest

from umappy.errors import StoreTimeoutError

Result = TypeVar("Result")

READY_SECONDS = 20.0
ENDED_SECONDS = 20.0

needs_nbdkit = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="needs nbdkit (apt-get install nbdkit)")
needs_qemu_nbd = pytest.mark.skipif(
    shutil.which("qemu-nbd") is None, reason="needs qemu-nbd (apt-get install qemu-utils)"
)


class NbdServer:
    """One server. `command` is what starts it in the foreground, without where it listens, which `listen_on` adds."""

    def __init__(self, command: Sequence[str], *, export: str = "", tcp: bool = False, tls: bool = False) -> None:
        # Paths of sockets hold 107 bytes: pytest's own folders are too deep.
        self.folder = Path(tempfile.mkdtemp(prefix="nbd-"))
        self.command = list(command)
        self.export = export
        self.tls = tls
        self.socket = None if tcp else self.folder / "socket"
        self.port = find_port() if tcp else 0
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        scheme, export = "nbds" if self.tls else "nbd", urllib.parse.quote(self.export, safe="")
        if self.socket is None:
            return f"{scheme}://127.0.0.1:{self.port}/{export}"
        return f"{scheme}+unix:///{export}?socket={urllib.parse.quote(str(self.socket))}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote to its standard error, over all its lives."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def listen_on(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        """It listens."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts it and waits until it takes connections."""
        assert self._process is None
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command[:1], *self.listen_on(), *self.command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._guard = subprocess.Popen(
            ["sh", "-c", f"read line || kill -9 {self._process.pid}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{' '.join(self.command)} does not serve:\n{self.log}")
            time.sleep(0.005)

    def kill(self) -> None:
        """kill -9. What it held in memory is gone."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Asks it to end, and waits until it has."""
        self._end(signal.SIGTERM)

    def suspend(self) -> None:
        """It stays connected and says nothing any more. ProcessLookupError: it had ended by itself."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)  # until it has: it may be answering just now
        except ChildProcessError:
            raise ProcessLookupError(f"{' '.join(self.command)} has ended:\n{self.log}") from None

    def revive(self) -> None:
        """Starts it again if it ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            self.kill()
            self.start()

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.log:
            error.add_note(f"log of {self.uri}:\n{self.log[-4000:]}")
        self.kill()
        shutil.rmtree(self.folder)

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(ENDED_SECONDS)
            finally:
                process.kill()
                process.wait()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.communicate(b"\n")


class Nbdkit(NbdServer):
    def listen_on(self) -> list[str]:
        place = ["-U", str(self.socket)] if self.socket is not None else ["-i", "127.0.0.1", "-p", str(self.port)]
        return ["-f", "-P", str(self._pid_file), *place, *(["-e", self.export] if self.export else [])]

    def is_ready(self) -> bool:
        return _ends_line(self._pid_file)  # written once it listens


class MortalNbdkit(Nbdkit):
    """Is killed every so often, and starts again, without this process: who waits for it may hold the GIL."""

    seconds = 0.7

    def listen_on(self) -> list[str]:
        loop = f'while :; do rm -f "$0"; timeout -s KILL {self.seconds} nbdkit "$@"; done'
        return ["-c", loop, str(self.socket), *super().listen_on()]


class QemuNbd(NbdServer):
    def listen_on(self) -> list[str]:
        place = ["-k", str(self.socket)] if self.socket is not None else ["-b", "127.0.0.1", "-p", str(self.port)]
        return ["-t", "--pid-file", str(self._pid_file), *place, *(["-x", self.export] if self.export else [])]

    def is_ready(self) -> bool:
        return _ends_line(self._pid_file)


def nbdkit(
    plugin: str,
    *arguments: str,
    filters: Iterable[str] = (),
    options: Iterable[str] = (),
    export: str = "",
    tcp: bool = False,
    tls: bool = False,
) -> Nbdkit:
    """nbdkit with one plugin, or the path of one.

    A name in `filters` puts that filter in front of what follows; what holds a "=" there is a parameter, of filters and
    plugin alike. `options` are nbdkit's own (`--no-sr`, `--threads=1`).
    """
    command = ["nbdkit", *options, *_list_words(plugin, arguments, filters)]
    return Nbdkit(command, export=export, tcp=tcp, tls=tls)


def mortal_nbdkit(plugin: str, *arguments: str, filters: Iterable[str] = ()) -> MortalNbdkit:
    """nbdkit on a unix socket, killed and started again without end."""
    return MortalNbdkit(["sh", *_list_words(plugin, arguments, filters)])


def qemu_nbd(
    image: Path,
    *,
    image_format: str = "raw",
    options: Iterable[str] = (),
    export: str = "",
    tcp: bool = False,
    tls: bool = False,
) -> QemuNbd:
    """qemu-nbd over an image file; `options` are its own (`--shared=4`, `--cache=none`)."""
    command = ["qemu-nbd", "-f", image_format, *options, str(image)]
    return QemuNbd(command, export=export, tcp=tcp, tls=tls)


def make_qcow2(path: Path, size: int) -> Path:
    """An empty qcow2 image of `size` bytes."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True, timeout=30)
    return path


def insist(call: Callable[[], Result]) -> Result:
    """Calls again and again, where a store's patience is shorter than what its server's return takes."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            return call()
        except StoreTimeoutError:
            assert time.monotonic() < deadline


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _list_words(plugin: str, arguments: Iterable[str], filters: Iterable[str]) -> list[str]:
    words = list(filters)
    names = [f"--filter={word}" for word in words if "=" not in word]
    return [*names, plugin, *arguments, *(word for word in words if "=" in word)]


def _ends_line(path: Path) -> bool:
    return path.exists() and path.read_bytes().endswith(b"\n")

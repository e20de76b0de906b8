"""`NbdStore`: an export of an NBD server: nbdkit, qemu-nbd, and what these serve."""

from __future__ import annotations

import getpass
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, SupportsIndex

from umappy._engine import ffi, lib
from umappy.sizes import format_size
from umappy.stores._nbd_uri import NbdAddress, parse_nbd_uri
from umappy.stores.file import Path, parse_mode
from umappy.stores.native import NativeStore, make_open_error, make_record_error

if TYPE_CHECKING:
    from umappy._engine import um_store

TIMEOUT_SECONDS = 30.0
RETRY_SECONDS = 60.0
SECONDS_MAX = 86400.0
CONNECTIONS_MAX = 16
FLAG_NAMES = {
    "read_only": 1 << 1,
    "can_flush": 1 << 2,
    "can_fua": 1 << 3,
    "can_discard": 1 << 5,
    "can_write_zeroes": 1 << 6,
    "can_multi_conn": 1 << 8,
}


@dataclass(frozen=True)
class NbdInfo:
    """What the server offers, and how the store is doing. All sizes are bytes."""

    size: int
    read_only: bool
    """The export: nobody can open it with "r+"."""
    can_flush: bool
    """Without it what the server acknowledged counts as durable."""
    can_fua: bool
    """Writes can be made durable one by one, and are where there is no FLUSH."""
    can_discard: bool
    can_write_zeroes: bool
    can_multi_conn: bool
    """Whether several connections may write."""
    block_min: int
    """What requests are multiples of; others are made of a read and a write."""
    block_preferred: int
    request_max: int
    structured: bool
    """Whether replies are structured: holes and pieces."""
    connections: int
    connections_up: int
    reconnects: int
    """Times the server was lost and came back."""
    unflushed: int
    """Of memory that holds what was written and not flushed, to be written again should the server be lost."""


class NbdStore(NativeStore):
    """The bytes of an export of an NBD server: nbdkit, qemu-nbd (images, Ceph RBD), cloud block devices.

    `uri` is "nbd://host:port/export", "nbd+unix:///export?socket=PATH", or one that begins with "nbds", which is the
    same with TLS. `mode` is "r" or "r+", or numpy's long name of it. An export has the size that its server gives it.

    `connections` is how many to open, 1 to 16; "auto": 4 where the server allows that, else 1. A server that does not
    (multi-conn) can be read over several, not written.

    A server that is silent for `timeout_seconds` is given up and connected to again, as is one that closes the
    connection. Meanwhile calls wait, up to `retry_seconds`; then they fail with StoreTimeoutError, and later ones try
    again. What was written and not flushed is kept and written again, since a server that was started anew may have
    lost it: in memory of an eighth of the region's budget, or of 8 MiB where no region has the store; when that is
    full, writing flushes. An export that came back with another size is an error for good.

    With "nbds" the server's certificate is verified. `tls_certificates` is a folder with ca-cert.pem, and with
    client-cert.pem and client-key.pem where the server asks for them; default: the system's authorities.
    `tls_hostname` is whom the certificate must name, default the host of the URI. `tls_psk_file` has keys instead,
    lines of "user:key" in hexadecimal; the URI names the user ("nbds://user@host/"). `tls_verify_peer` False takes any
    certificate. The URI can hold these, too: see docs/nbd.md.

    Raises ValueError for a URI or an export that does not suit, StoreTimeoutError, and StoreError otherwise: NotFound
    for an export or a socket that is not there, Permission.
    """

    mode: Literal["r", "r+"]
    _any_buffer = True
    uri: str
    """Complete, in its normal form; names no secret."""

    def __init__(
        self,
        uri: str,
        mode: str = "r",
        *,
        connections: SupportsIndex | Literal["auto"] = "auto",
        timeout_seconds: float = TIMEOUT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        tls_certificates: Path | None = None,
        tls_psk_file: Path | None = None,
        tls_hostname: str | None = None,
        tls_verify_peer: bool | None = None,
    ) -> None:
        if not isinstance(uri, str):
            raise TypeError(f"uri is {uri!r}: wants a str such as 'nbd://host/export'")
        address = parse_nbd_uri(
            uri,
            tls_certificates=tls_certificates,
            tls_psk_file=tls_psk_file,
            tls_hostname=tls_hostname,
            tls_verify_peer=tls_verify_peer,
        )
        self.uri = str(address)
        self.mode = _parse_mode(mode)
        self._connections = _read_connections(connections)
        self._timeout = _read_seconds(timeout_seconds, "timeout_seconds", least=0.001)
        self._retry = _read_seconds(retry_seconds, "retry_seconds", least=0.0)
        super().__init__(self._open(address))
        self.page_size = self._look().block_min

    def info(self) -> NbdInfo:
        """Tells what the server offers, and how the store is doing now."""
        with self._borrow():
            return self._look()

    def discard(self, offset: int, length: int) -> None:
        """Tells the server that these bytes are not needed: what they are from now on is up to it.

        Nothing where the server does not take such hints, and for parts of its blocks. ValueError where `offset` and
        `length` pass `size`.
        """
        self._check_range(offset, length)
        self._do(lib.um_nbd_store_discard, offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Makes these bytes zeros, without sending any where the server can do that. ValueError as for `discard`."""
        self._check_range(offset, length)
        self._do(lib.um_nbd_store_write_zeroes, offset, length)

    def __repr__(self) -> str:
        if not hasattr(self, "size"):
            return f"<NbdStore {getattr(self, 'uri', '')!r}, not open>"
        state = ", closed" if self.closed else ""
        return f"<NbdStore {self.uri!r}, mode {self.mode!r}, {format_size(self.size)}{state}>"

    def __reduce__(self) -> tuple[object, ...]:
        """The recipe: the same export, opened for reading."""
        return _open_again, (self.uri, self._connections, self._timeout, self._retry)

    def _do(self, call: object, offset: int, length: int) -> None:
        record = ffi.new("um_error *")
        with self._borrow() as handle:
            if call(handle, offset, length, record) < 0:  # type: ignore[operator]
                raise make_record_error(record)

    def _look(self) -> NbdInfo:
        assert self._handle is not None
        info = ffi.new("um_nbd_info *")
        lib.um_nbd_store_info(self._handle, info)
        return NbdInfo(
            size=info.size,
            **{name: bool(info.flags & bit) for name, bit in FLAG_NAMES.items()},
            block_min=info.block_min,
            block_preferred=info.block_preferred,
            request_max=info.length_max,
            structured=bool(info.structured),
            connections=info.connections,
            connections_up=info.connections_up,
            reconnects=info.reconnects,
            unflushed=info.unflushed,
        )

    def _open(self, address: NbdAddress) -> um_store:
        tls = address.tls
        socket = "@" + address.socket[1:] if address.socket.startswith("\0") else address.socket
        texts = {
            "name": self.uri,
            "host": address.host or None,
            "port": str(address.port) if address.host else None,
            "path": socket or None,
            "export_name": address.export,
            "tls_certificates": tls.certificates if tls else None,
            "tls_psk_file": tls.psk_file if tls else None,
            "tls_username": (address.user or getpass.getuser()) if tls and tls.psk_file else None,
            "tls_hostname": address.certificate_name,
        }
        # cffi copies what pointers point to from no dict: the texts must outlive the call.
        kept = {name: ffi.new("char[]", os.fsencode(text)) for name, text in texts.items() if text is not None}
        options = ffi.new(
            "um_nbd_options *",
            {
                **kept,
                "writable": self.mode == "r+",
                "connections": 0 if self._connections == "auto" else self._connections,
                "timeout_ns": int(self._timeout * 1e9),
                "retry_ns": int(self._retry * 1e9),
                "tls": tls is not None,
                "tls_verify": tls is not None and tls.verify,
            },
        )
        store, record = ffi.new("um_store **"), ffi.new("um_error *")
        if lib.um_nbd_store_open(options, store, record) < 0:
            raise make_open_error(record)
        return store[0]


def _open_again(uri: str, connections: int | Literal["auto"], timeout_seconds: float, retry_seconds: float) -> NbdStore:
    return NbdStore(uri, connections=connections, timeout_seconds=timeout_seconds, retry_seconds=retry_seconds)


def _parse_mode(mode: str) -> Literal["r", "r+"]:
    parsed = parse_mode(mode)
    if parsed in {"w+", "x"}:
        raise ValueError(f"mode is {mode!r}: an export is made by its server; wants 'r' or 'r+'")
    return parsed  # type: ignore[return-value]


def _read_connections(connections: SupportsIndex | str) -> int | Literal["auto"]:
    if connections == "auto":
        return "auto"
    if isinstance(connections, bool) or not isinstance(connections, SupportsIndex):
        raise TypeError(f"connections is {connections!r}: wants 1 to {CONNECTIONS_MAX}, or 'auto'")
    count = connections.__index__()
    if not 1 <= count <= CONNECTIONS_MAX:
        raise ValueError(f"connections is {count}: wants 1 to {CONNECTIONS_MAX}, or 'auto'")
    return count


def _read_seconds(value: float, name: str, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}: wants a number of seconds")
    if not (math.isfinite(value) and least <= value <= SECONDS_MAX):
        raise ValueError(f"{name} is {value!r}: wants {least:g} to {SECONDS_MAX:g} seconds")
    return float(value)

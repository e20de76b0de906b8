"""URIs of NBD exports, as the NBD project's doc/uri.md has them.

    nbd://host:port/export            TCP; port 10809 where none is given
    nbd+unix:///export?socket=PATH    a Unix socket
    nbds://user@host/export           the same two with TLS
    nbds+unix://user@/export?socket=PATH

The export's name is all of the path behind its first slash. What no part of a URI may hold is percent-encoded. With
TLS go `tls-certificates=FOLDER`, `tls-psk-file=FILE`, `tls-type=x509` or `psk`, `tls-hostname=NAME` and
`tls-verify-peer=0`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from umappy.stores.file import Path

PORT_DEFAULT = 10809
EXPORT_BYTES_MAX = 4096  # the protocol's own limit
SOCKET_BYTES_MAX = 107  # what the system's sockaddr_un takes beside its zero

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")
TLS_SHOWN = ("tls-certificates", "tls-hostname", "tls-psk-file", "tls-verify-peer")
TLS_PARAMETERS = (*TLS_SHOWN, "tls-type")

# RFC 3986, appendix B, with the authority taken apart; every text matches.
_URI = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_AUTHORITY = re.compile(r"(?:(?P<user>[^@]*)@)?(?P<host>\[[^\]]*\]|[^\[\]:@]*)(?::(?P<port>[^:@]*))?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)


@dataclass(frozen=True)
class NbdTls:
    """How a server proves who it is, and how we do. Files are not looked at before a connection is made."""

    kind: Literal["x509", "psk"]
    certificates: str | None = None
    """Folder with ca-cert.pem, and client-cert.pem with client-key.pem where the server asks for them. None: the
    system's authorities."""
    psk_file: str | None = None
    """Lines of `user:key in hexadecimal`, as psktool and nbdkit write them."""
    hostname: str | None = None
    """Whom the certificate must name; None: the host that we connect to."""
    verify: bool = True
    """Whether a certificate is verified at all."""


@dataclass(frozen=True)
class NbdAddress:
    """Where an export is. Either `host` and `port` say so or `socket`; the others are empty and 0."""

    host: str = ""
    """A name or an address, IPv6 without its brackets."""
    port: int = 0
    socket: str = ""
    """Absolute path, undecodable bytes as surrogates (os.fsencode); a leading zero: the abstract namespace."""
    export: str = ""
    user: str = ""
    """For keys that are shared beforehand; empty: the name of who runs the process."""
    tls: NbdTls | None = None

    @property
    def certificate_name(self) -> str | None:
        """Whom the server's certificate must name; None: whomever."""
        if self.tls is None or self.tls.kind != "x509" or not self.tls.verify:
            return None
        return self.tls.hostname or self.host.partition("%")[0]  # no certificate names a network interface

    def __str__(self) -> str:
        """The URI, complete: whatever the working folder is, it means the same."""
        scheme = "nbd" if self.tls is None else "nbds"
        parameters = []
        if self.socket:
            parameters.append(("socket", self.socket))
        if self.tls is not None:
            tls = self.tls
            given = (tls.certificates, tls.hostname, tls.psk_file, None if tls.verify else "0")
            parameters += [(name, value) for name, value in zip(TLS_SHOWN, given, strict=True) if value is not None]
        query = "&".join(f"{name}={quote(os.fsencode(value), safe='/')}" for name, value in parameters)
        authority = f"{quote(self.user, safe='')}@" if self.user else ""
        if not self.socket:
            host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else quote(self.host, safe="")
            authority += f"{host}:{self.port}"
        return (
            f"{scheme}{'+unix' if self.socket else ''}://{authority}/{quote(self.export, safe='/')}"
            f"{'?' if query else ''}{query}"
        )


def is_nbd_uri(text: str) -> bool:
    """Whether this is meant as the URI of an NBD export, right or wrong, and not as a path."""
    return text.partition("://")[0].lower() in {*SCHEMES, "nbd+vsock", "nbds+vsock"} and "://" in text


def parse_nbd_uri(
    uri: str,
    *,
    tls_certificates: Path | None = None,
    tls_psk_file: Path | None = None,
    tls_hostname: str | None = None,
    tls_verify_peer: bool | None = None,
) -> NbdAddress:
    """Returns what the URI says, and beside it its parameters of the same names (None: the URI says it).

    ValueError, with the remedy, where it is no such URI or says too little or too much.
    """
    match = _URI.fullmatch(uri)
    assert match is not None
    scheme, authority, path, query, fragment = match.groups()
    scheme = (scheme or "").lower()
    if scheme not in SCHEMES:
        if scheme in {"nbd+vsock", "nbds+vsock"}:
            raise _refuse(uri, "sockets of virtual machines (vsock) are not supported; use TCP or a Unix socket")
        raise _refuse(uri, f"wants a URI that begins with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    if authority is None:
        raise _refuse(uri, f"wants two slashes after the scheme: '{scheme}://'")
    if fragment is not None:
        raise _refuse(uri, "'#' begins a fragment, which means nothing here; write '%23' where a name holds it")
    user, host, port = _parse_authority(uri, authority)
    parameters = _parse_query(uri, query)
    beside = {
        "tls-certificates": None if tls_certificates is None else os.fsdecode(tls_certificates),
        "tls-psk-file": None if tls_psk_file is None else os.fsdecode(tls_psk_file),
        "tls-hostname": tls_hostname,
        "tls-verify-peer": None if tls_verify_peer is None else str(int(tls_verify_peer)),
    }
    for name, value in beside.items():
        if value is not None:
            _add(uri, parameters, name, value)
    socket = parameters.pop("socket", None)
    export = _check_export(uri, _decode(uri, path[1:]))
    tls = _parse_tls(uri, scheme, parameters)
    if user and tls is None:
        raise _refuse(uri, f"a user ({user!r}) only means something with TLS: write 'nbds' for 'nbd', or leave it out")
    if scheme.endswith("+unix"):
        if host or port is not None:
            raise _refuse(uri, f"a Unix socket has no host: write '{scheme}:///EXPORT?socket=PATH', with three slashes")
        return NbdAddress(socket=_check_socket(uri, socket), export=export, user=user, tls=tls)
    if socket is not None:
        raise _refuse(uri, f"'socket' goes with '{scheme}+unix://', not with '{scheme}://'")
    return NbdAddress(host or "localhost", PORT_DEFAULT if port is None else port, "", export, user, tls)


def _refuse(uri: str, why: str) -> ValueError:
    return ValueError(f"{uri!r}: {why}")


def _decode(uri: str, text: str, *, any_bytes: bool = False) -> str:
    """Percent-decoded. '+' is itself: only forms of web pages mean a space by it."""
    bad = _BAD_ESCAPE.search(text)
    if bad:
        raise _refuse(uri, f"{bad.group()!r} is no percent-encoded byte; write '%25' for a percent sign")
    try:
        decoded = unquote_to_bytes(text.encode(errors="surrogateescape"))
        return decoded.decode(errors="surrogateescape" if any_bytes else "strict")
    except UnicodeDecodeError:
        raise _refuse(uri, f"{text!r} does not decode to UTF-8") from None


def _parse_authority(uri: str, authority: str) -> tuple[str, str, int | None]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise _refuse(uri, f"{authority!r} is no '[USER@]HOST[:PORT]'; an IPv6 address goes into brackets: '[::1]'")
    user = match["user"] or ""
    if ":" in user:
        raise _refuse(uri, "NBD has no passwords; a shared key goes into the file that 'tls-psk-file' names")
    host = match["host"]
    if host.startswith("["):
        host = _check_ipv6(uri, _decode(uri, host[1:-1]))
    else:
        host = _decode(uri, host)
    if any(character <= " " or character == "\x7f" for character in host):
        raise _refuse(uri, f"{host!r} is no name of a host")
    return _decode(uri, user), host, _parse_port(uri, match["port"])


def _check_ipv6(uri: str, host: str) -> str:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise _refuse(uri, f"{host!r} is no IPv6 address; only those go into brackets") from None
    return host


def _parse_port(uri: str, port: str | None) -> int | None:
    if not port:
        return None  # "host:" is allowed
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise _refuse(uri, f"port is {port!r}: wants 1 to 65535")
    return int(port)


def _parse_query(uri: str, query: str | None) -> dict[str, str]:
    known = ("socket", *TLS_PARAMETERS)
    parameters: dict[str, str] = {}
    for part in (query or "").split("&"):
        if not part:
            continue
        name, _, value = part.partition("=")
        name = _decode(uri, name)
        if name not in known:
            raise _refuse(uri, f"no parameter {name!r}; there are {', '.join(known)}")
        _add(uri, parameters, name, _decode(uri, value, any_bytes=True))
    return parameters


def _add(uri: str, parameters: dict[str, str], name: str, value: str) -> None:
    if name in parameters:
        raise _refuse(uri, f"{name!r} is given twice")
    if not value:
        raise _refuse(uri, f"{name!r} has no value")
    if "\0" in value[name == "socket" :]:  # a leading one: the abstract namespace
        raise _refuse(uri, f"{name!r} holds a zero byte")
    parameters[name] = value


def _check_export(uri: str, export: str) -> str:
    if "\0" in export:
        raise _refuse(uri, "the name of an export cannot hold a zero byte")
    if len(export.encode()) > EXPORT_BYTES_MAX:
        raise _refuse(uri, f"the name of the export has {len(export.encode())} bytes: wants {EXPORT_BYTES_MAX} at most")
    return export


def _check_socket(uri: str, socket: str | None) -> str:
    if socket is None:
        raise _refuse(uri, "a Unix socket is named by '?socket=PATH'")
    if not socket.startswith("\0"):
        socket = os.path.abspath(socket)
    length = len(os.fsencode(socket))
    if length > SOCKET_BYTES_MAX:
        raise _refuse(
            uri,
            f"the path of the socket has {length} bytes: the system takes {SOCKET_BYTES_MAX}; link to it from nearer",
        )
    return socket


def _parse_tls(uri: str, scheme: str, parameters: dict[str, str]) -> NbdTls | None:
    if not scheme.startswith("nbds"):
        for name in parameters:
            raise _refuse(uri, f"{name!r} goes with TLS: write '{scheme.replace('nbd', 'nbds')}://'")
        return None
    certificates, psk_file = parameters.get("tls-certificates"), parameters.get("tls-psk-file")
    kind = parameters.get("tls-type", "x509" if psk_file is None else "psk")
    verify = parameters.get("tls-verify-peer", "1")
    hostname = parameters.get("tls-hostname")
    if kind == "anon":
        raise _refuse(uri, "'tls-type=anon' would encrypt without knowing for whom; use x509 or psk")
    if kind not in {"x509", "psk"}:
        raise _refuse(uri, f"tls-type is {kind!r}: wants x509 or psk")
    if verify not in {"0", "1"}:
        raise _refuse(uri, f"tls-verify-peer is {verify!r}: wants 0 or 1")
    if kind == "psk":
        if psk_file is None:
            raise _refuse(uri, "keys shared beforehand are in a file: 'tls-psk-file=FILE'")
        if certificates is not None or hostname is not None or verify == "0":
            raise _refuse(uri, "with a key shared beforehand there is no certificate to name or to verify")
        return NbdTls("psk", psk_file=os.path.abspath(psk_file))
    if psk_file is not None:
        raise _refuse(uri, "'tls-psk-file' and certificates exclude each other: leave one of them out")
    if scheme.endswith("+unix") and hostname is None and verify == "1":
        raise _refuse(
            uri,
            "a Unix socket does not tell whom the certificate must name: 'tls-hostname=NAME' does; "
            "'tls-verify-peer=0' leaves it unverified",
        )
    folder = None if certificates is None else os.path.abspath(certificates)
    return NbdTls("x509", folder, None, hostname, verify == "1")

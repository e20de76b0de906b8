import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umappy.stores._nbd_uri import EXPORT_BYTES_MAX, NbdAddress, NbdTls, is_nbd_uri, parse_nbd_uri

X509 = NbdTls("x509")


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd://example.com", NbdAddress("example.com", 10809)),
        ("nbd://example.com/", NbdAddress("example.com", 10809)),
        ("nbd://example.com:10810/disk", NbdAddress("example.com", 10810, export="disk")),
        ("nbd://example.com:/disk", NbdAddress("example.com", 10809, export="disk")),
        ("nbd://example.com//disk", NbdAddress("example.com", 10809, export="/disk")),
        ("nbd://example.com/a/b", NbdAddress("example.com", 10809, export="a/b")),
        ("nbd://example.com/hello%20world", NbdAddress("example.com", 10809, export="hello world")),
        ("nbd://example.com/a+b", NbdAddress("example.com", 10809, export="a+b")),
        ("nbd://example.com/%D0%B4", NbdAddress("example.com", 10809, export="д")),
        ("nbd://example.com/д", NbdAddress("example.com", 10809, export="д")),
        ("nbd:///disk", NbdAddress("localhost", 10809, export="disk")),
        ("nbd://[::1]:99/x", NbdAddress("::1", 99, export="x")),
        ("nbd://[fe80::1%25eth0]", NbdAddress("fe80::1%eth0", 10809)),
        ("NBD://h", NbdAddress("h", 10809)),
        ("nbd+unix:///disk?socket=/run/n.sock", NbdAddress(socket="/run/n.sock", export="disk")),
        ("nbd+unix://?socket=/run/n.sock", NbdAddress(socket="/run/n.sock")),
        ("nbd+unix:///?socket=/run/a+b%20c%FF", NbdAddress(socket="/run/a+b c\udcff")),
        ("nbd+unix:///?socket=%00/abstract", NbdAddress(socket="\0/abstract")),
        ("nbds://h/x", NbdAddress("h", 10809, export="x", tls=X509)),
        ("nbds://h/?tls-type=x509", NbdAddress("h", 10809, tls=X509)),
        ("nbds://h/?tls-certificates=/etc/pki", NbdAddress("h", 10809, tls=NbdTls("x509", "/etc/pki"))),
        ("nbds://h/?tls-verify-peer=0", NbdAddress("h", 10809, tls=NbdTls("x509", verify=False))),
        (
            "nbds+unix:///?socket=/s&tls-hostname=h",
            NbdAddress(socket="/s", tls=NbdTls("x509", hostname="h")),
        ),
        (
            "nbds+unix://alice@/x?socket=/s&tls-psk-file=/keys",
            NbdAddress(socket="/s", export="x", user="alice", tls=NbdTls("psk", psk_file="/keys")),
        ),
        ("nbds://a%40b@h?tls-psk-file=/k", NbdAddress("h", 10809, user="a@b", tls=NbdTls("psk", psk_file="/k"))),
    ],
)
def test_parse_uri_gives_its_parts(uri: str, address: NbdAddress) -> None:
    assert parse_nbd_uri(uri) == address


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("disk.img", "begins with one of nbd://"),
        ("http://h/x", "begins with one of nbd://"),
        ("nbd+vsock://2/x", "use TCP or a Unix socket"),
        ("nbd:disk", "two slashes"),
        ("nbd://h/x#y", "%23"),
        ("nbd://h:0/x", "1 to 65535"),
        ("nbd://h:65536/x", "1 to 65535"),
        ("nbd://h:port/x", "1 to 65535"),
        ("nbd://h:-1/x", "1 to 65535"),
        ("nbd://::1/x", r"\[::1\]"),
        ("nbd://[::1/x", "brackets"),
        ("nbd://[h]/x", "no IPv6 address"),
        ("nbd://a b/x", "no name of a host"),
        ("nbd://user:word@h/x", "no passwords"),
        ("nbd://user@h/x", "only means something with TLS"),
        ("nbd://h/%zz", "'%zz' is no percent-encoded byte"),
        ("nbd://h/100%", "%25"),
        ("nbd://h/%FF", "UTF-8"),
        ("nbd://h/a%00b", "zero byte"),
        ("nbd://h/" + "x" * (EXPORT_BYTES_MAX + 1), "4097 bytes: wants 4096"),
        ("nbd://h/?socket=/s", r"nbd\+unix://"),
        ("nbd://h/?sock=/s", "no parameter 'sock'"),
        ("nbd+unix:///x", r"\?socket=PATH"),
        ("nbd+unix:///?socket=", "no value"),
        ("nbd+unix:///?socket=/s&socket=/t", "twice"),
        ("nbd+unix:///?socket=/s%00t", "zero byte"),
        ("nbd+unix://x?socket=/s", "three slashes"),
        ("nbd+unix:///?socket=/" + "s" * 107, "108 bytes: the system takes 107"),
        ("nbd://h/?tls-hostname=h", "nbds://"),
        ("nbds://h/?tls-type=anon", "x509 or psk"),
        ("nbds://h/?tls-type=none", "x509 or psk"),
        ("nbds://h/?tls-type=psk", "tls-psk-file=FILE"),
        ("nbds://h/?tls-psk-file=/k&tls-verify-peer=0", "no certificate"),
        ("nbds://h/?tls-psk-file=/k&tls-type=x509", "exclude each other"),
        ("nbds://h/?tls-verify-peer=yes", "wants 0 or 1"),
        ("nbds+unix:///?socket=/s", "tls-hostname=NAME"),
    ],
)
def test_parse_uri_that_is_none_tells_what_to_write(uri: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        parse_nbd_uri(uri)
    assert repr(uri) in str(raised.value)


def test_parse_what_is_said_beside_the_uri_counts() -> None:
    address = parse_nbd_uri("nbds+unix:///?socket=/s", tls_hostname="h", tls_certificates=Path("/pki"))
    assert address.tls == NbdTls("x509", "/pki", hostname="h")
    assert parse_nbd_uri("nbds://h", tls_psk_file=b"/k").tls == NbdTls("psk", psk_file="/k")
    assert parse_nbd_uri("nbds://h", tls_verify_peer=False).tls == NbdTls("x509", verify=False)


def test_parse_what_is_said_in_the_uri_and_beside_it_is_refused() -> None:
    with pytest.raises(ValueError, match="'tls-hostname' is given twice"):
        parse_nbd_uri("nbds://h?tls-hostname=a", tls_hostname="b")


def test_parse_tls_said_beside_a_plain_uri_is_refused() -> None:
    with pytest.raises(ValueError, match="nbds://"):
        parse_nbd_uri("nbd://h", tls_certificates="/pki")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("nbds://h", "h"),
        ("nbds://[fe80::1%25eth0]", "fe80::1"),
        ("nbds://h?tls-hostname=other", "other"),
        ("nbds+unix:///?socket=/s&tls-hostname=h", "h"),
        ("nbds://h?tls-verify-peer=0", None),
        ("nbds://h?tls-psk-file=/k", None),
        ("nbd://h", None),
    ],
)
def test_certificate_must_name_the_host_or_who_is_told(uri: str, name: str | None) -> None:
    assert parse_nbd_uri(uri).certificate_name == name


def test_parse_relative_paths_mean_the_folder_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = parse_nbd_uri("nbds+unix:///?socket=s&tls-certificates=pki&tls-hostname=h")
    monkeypatch.chdir("/")
    assert address.socket == str(tmp_path / "s")
    assert address.tls == NbdTls("x509", str(tmp_path / "pki"), hostname="h")


@pytest.mark.parametrize(
    ("text", "is_uri"),
    [
        ("nbd://h", True),
        ("NBDS+unix:///x", True),
        ("nbd+vsock://2/x", True),
        ("nbd", False),
        ("nbd:x", False),
        ("./nbd://h", False),
        ("s3://b/k", False),
    ],
)
def test_is_nbd_uri_tells_uris_from_paths(text: str, is_uri: bool) -> None:
    assert is_nbd_uri(text) == is_uri


no_zeros = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
names = st.text(no_zeros, max_size=30)
paths = st.binary(min_size=1, max_size=60).filter(lambda b: 0 not in b).map(lambda b: os.path.abspath(b"/x" + b))
socket_paths = st.tuples(st.booleans(), paths).map(lambda pair: os.fsdecode(b"\0" * pair[0] + pair[1]))
x509 = st.builds(
    NbdTls, st.just("x509"), paths.map(os.fsdecode) | st.none(), st.none(), names.filter(bool), st.booleans()
)
psk = st.builds(lambda path: NbdTls("psk", psk_file=os.fsdecode(path)), paths)
hosts = st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True) | st.sampled_from(["::1", "fe80::1%eth0", "1::2:3"])


@st.composite
def addresses(draw: st.DrawFn) -> NbdAddress:
    tls = draw(st.none() | x509 | psk)
    export, user = draw(names), draw(names) if tls else ""
    if draw(st.booleans()):
        return NbdAddress(socket=draw(socket_paths), export=export, user=user, tls=tls)
    return NbdAddress(draw(hosts), draw(st.integers(1, 65535)), "", export, user, tls)


@given(addresses())
def test_text_of_an_address_parses_to_it(address: NbdAddress) -> None:
    assert parse_nbd_uri(str(address)) == address


@given(st.text(st.sampled_from("nbdsunix+:/?#[]@%&=.0129aZ-~ \0é"), max_size=40) | st.text(max_size=20))
def test_parse_anything_behind_a_scheme_gives_an_address_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_nbd_uri(f"nbd://{text}").host

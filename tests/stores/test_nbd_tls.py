"""TLS against nbdkit and qemu-nbd, which use GnuTLS: whom we trust, what we show, and what each failure tells."""

from __future__ import annotations

import os
import random
import shutil
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import umappy
from nbd_servers import NbdServer, nbdkit, needs_nbdkit, needs_qemu_nbd, qemu_nbd
from scripted_nbd import OPT_STARTTLS, REP_ACK, Connection, ScriptedNbd
from umappy.errors import ForkedRegionError, StoreError, StoreNotFoundError, StorePermissionError
from umappy.stores import NbdStore

pytestmark = [
    needs_nbdkit,
    pytest.mark.skipif(shutil.which("certtool") is None, reason="needs certtool (apt-get install gnutls-bin)"),
]

SIZE = 1 << 20
USER, KEY = "alice", "00112233445566778899aabbccddeeff"


class Authority:
    """Signs certificates. Folders that it makes are as nbdkit, qemu-nbd and umappy want them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.certificate, self._key = folder, folder / "ca-cert.pem", folder / "ca-key.pem"
        make_key(self._key)
        self._run(
            "--generate-self-signed", self.certificate, "cn = testing", "ca", "cert_signing_key", "crl_signing_key"
        )

    def make_server(self, name: str, *lines: str) -> Path:
        """For the names and addresses that the lines say; for localhost where they say none."""
        names = lines or ("dns_name = localhost", "ip_address = 127.0.0.1")
        return self._make(name, "server", "tls_www_server", *names)

    def make_client(self, name: str) -> Path:
        return self._make(name, "client", "tls_www_client")

    def make_trust(self, name: str) -> Path:
        """A folder that knows the authority and nothing else."""
        folder = self.folder / name
        folder.mkdir()
        shutil.copy(self.certificate, folder)
        return folder

    def revoke(self, server: Path, trust: Path) -> None:
        """Notes in `trust` that the server's certificate counts no more."""
        self._run("--generate-crl", trust / "ca-crl.pem", "crl_next_update = 10", revoked=server / "server-cert.pem")

    def _make(self, name: str, role: str, *lines: str) -> Path:
        folder = self.make_trust(name)
        key = folder / f"{role}-key.pem"
        make_key(key)
        words = (f"cn = {name}", "signing_key", *lines)
        if not any("expiration" in line for line in lines):
            words += ("expiration_days = 2",)
        self._run("--generate-certificate", folder / f"{role}-cert.pem", *words, key=key)
        return folder

    def _run(self, what: str, to: Path, *lines: str, key: Path | None = None, revoked: Path | None = None) -> None:
        template = self.folder / "template"
        template.write_text("".join(f"{line}\n" for line in lines))
        command = ["certtool", what, "--template", str(template), "--outfile", str(to)]
        if what == "--generate-self-signed":
            command += ["--load-privkey", str(self._key)]
        else:
            command += ["--load-ca-certificate", str(self.certificate), "--load-ca-privkey", str(self._key)]
        if key is not None:
            command += ["--load-privkey", str(key)]
        if revoked is not None:
            command += ["--load-certificate", str(revoked)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def make_key(path: Path) -> None:
    subprocess.run(
        ["certtool", "--generate-privkey", "--key-type", "ecdsa", "--outfile", str(path)],
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def server_folder(authority: Authority) -> Path:
    return authority.make_server("server")


@pytest.fixture(scope="module")
def trust(authority: Authority) -> Path:
    return authority.make_trust("trust")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.psk"
    path.write_text(f"{USER}:{KEY}\n")
    return path


def serve_tls(
    folder: Path, *options: str, tcp: bool = True, plugin: tuple[str, ...] = ("memory", str(SIZE))
) -> NbdServer:
    certificates = ("--tls=require", f"--tls-certificates={folder}", *options)
    return nbdkit(*plugin, options=certificates, tcp=tcp, tls=True)


def serve_keys(keys: Path) -> NbdServer:
    return nbdkit("memory", str(SIZE), options=["--tls=require", f"--tls-psk={keys}"], tls=True)


def open_store(uri: str, mode: str = "r+", **tls: object) -> NbdStore:
    return NbdStore(uri, mode, timeout_seconds=10, retry_seconds=1, **tls)  # type: ignore[arg-type]


def check_both_ways(store: NbdStore) -> None:
    data = random.Random(1).randbytes(100_000)
    store.write(5000, data)
    store.flush()
    buffer = bytearray(len(data))
    store.read_into(5000, buffer)
    assert buffer == data


def refuse(uri: str, said: str, kind: type[Exception] = StoreError, **tls: object) -> None:
    with pytest.raises(kind, match=said):
        open_store(uri, "r", **tls).close()


def with_user(server: NbdServer, user: str) -> str:
    return server.uri.replace("nbds+unix://", f"nbds+unix://{user}@")


# Certificates


def test_server_whose_certificate_is_of_its_address_serves(server_folder: Path, trust: Path) -> None:
    with serve_tls(server_folder) as server, open_store(server.uri, tls_certificates=trust) as store:
        check_both_ways(store)


def test_server_whose_certificate_is_of_its_name_serves(server_folder: Path, trust: Path) -> None:
    with serve_tls(server_folder) as server:
        uri = f"{server.uri.replace('127.0.0.1', 'localhost')}?tls-certificates={trust}"
        with open_store(uri) as store:
            check_both_ways(store)


def test_server_on_a_unix_socket_is_verified_by_the_name_that_is_told(server_folder: Path, trust: Path) -> None:
    with serve_tls(server_folder, tcp=False) as server:
        with open_store(server.uri, tls_certificates=trust, tls_hostname="localhost") as store:
            check_both_ways(store)
        refuse(server.uri, "not of elsewhere", tls_certificates=trust, tls_hostname="elsewhere")


def test_server_of_another_name_is_refused(authority: Authority, trust: Path) -> None:
    folder = authority.make_server("elsewhere", "dns_name = elsewhere.example")
    with serve_tls(folder) as server:
        refuse(server.uri, "not of 127.0.0.1 .*tls-hostname=NAME", tls_certificates=trust)
        with open_store(server.uri, tls_certificates=trust, tls_hostname="elsewhere.example") as store:
            check_both_ways(store)


def test_server_of_an_unknown_authority_is_refused(server_folder: Path, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").make_trust("trust")
    with serve_tls(server_folder) as server:
        refuse(server.uri, r"cannot be verified: .*ca-cert\.pem", tls_certificates=other)
        refuse(server.uri, r"cannot be verified: .*ca-cert\.pem")  # the system's authorities


def test_server_of_an_unknown_authority_serves_unverified(server_folder: Path) -> None:
    with serve_tls(server_folder) as server, open_store(server.uri, tls_verify_peer=False) as store:
        check_both_ways(store)


def test_server_whose_certificate_has_expired_is_refused(authority: Authority, trust: Path) -> None:
    dates = ('activation_date = "2020-01-01 00:00:00"', 'expiration_date = "2020-02-01 00:00:00"')
    folder = authority.make_server("expired", "ip_address = 127.0.0.1", *dates)
    with serve_tls(folder) as server:
        refuse(server.uri, "expired.*clock", tls_certificates=trust)


def test_server_whose_certificate_was_revoked_is_refused(authority: Authority) -> None:
    folder, trust = authority.make_server("revoked"), authority.make_trust("trust-of-few")
    with serve_tls(folder) as server:
        open_store(server.uri, tls_certificates=trust).close()
        authority.revoke(folder, trust)
        refuse(server.uri, "revoked", tls_certificates=trust)


def test_server_that_wants_our_certificate_gets_it(authority: Authority, server_folder: Path) -> None:
    client = authority.make_client("client")
    with (
        serve_tls(server_folder, "--tls-verify-peer") as server,
        open_store(server.uri, tls_certificates=client) as store,
    ):
        check_both_ways(store)


def test_server_that_wants_our_certificate_and_gets_none_is_explained(server_folder: Path, trust: Path) -> None:
    with serve_tls(server_folder, "--tls-verify-peer") as server:
        refuse(server.uri, r"client-cert\.pem", tls_certificates=trust)


@needs_qemu_nbd
def test_qemu_nbd_with_certificates_of_both_sides_serves(
    authority: Authority, server_folder: Path, trust: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    client = authority.make_client("client-of-qemu")
    credentials = f"tls-creds-x509,id=tls,endpoint=server,dir={server_folder},verify-peer=yes"
    options = ["--object", credentials, "--tls-creds", "tls"]
    with qemu_nbd(image, options=options, tcp=True, tls=True) as server:
        with open_store(server.uri, tls_certificates=client) as store:
            check_both_ways(store)
        refuse(server.uri, r"client-cert\.pem", tls_certificates=trust)


# Keys that are shared beforehand


def test_server_that_shares_our_key_serves(keys: Path) -> None:
    with serve_keys(keys) as server, open_store(with_user(server, USER), tls_psk_file=keys) as store:
        check_both_ways(store)


def test_server_that_has_another_key_of_ours_is_refused(keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.psk"
    other.write_text(f"{USER}:{KEY[::-1]}\n")
    with serve_keys(keys) as server:
        refuse(with_user(server, USER), "shared key", tls_psk_file=other)


def test_server_that_does_not_know_our_user_is_refused(keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.psk"
    other.write_text(f"bob:{KEY}\n")
    with serve_keys(keys) as server:
        refuse(with_user(server, "bob"), "shared key", tls_psk_file=other)


def test_server_that_shows_a_certificate_instead_of_knowing_the_key_is_refused(server_folder: Path, keys: Path) -> None:
    with serve_tls(server_folder, tcp=False) as server:
        refuse(with_user(server, USER), "certificate instead|none of our ciphers", tls_psk_file=keys)


def test_server_that_wants_a_key_where_we_have_certificates_is_explained(keys: Path, trust: Path) -> None:
    with serve_keys(keys) as server:
        refuse(server.uri, "TLS handshake|shared key", tls_certificates=trust, tls_hostname="localhost")


def test_file_of_keys_without_the_user_names_both(keys: Path) -> None:
    with serve_keys(keys) as server:
        refuse(with_user(server, "carol"), f"{keys} has no key of user carol", tls_psk_file=keys)
        refuse(with_user(server, "carol"), "nowhere", StoreNotFoundError, tls_psk_file=keys.parent / "nowhere")
        keys.write_text("carol:xyz\n")
        refuse(with_user(server, "carol"), "hexadecimal", ValueError, tls_psk_file=keys)


# Who has TLS, and who has not


def test_server_without_tls_is_refused(trust: Path) -> None:
    with nbdkit("memory", str(SIZE), tcp=True, tls=True) as server:
        refuse(server.uri, "nothing is sent without it", tls_certificates=trust)


def test_server_that_wants_tls_tells_plain_clients_the_scheme(server_folder: Path) -> None:
    with serve_tls(server_folder) as server:
        refuse(server.uri.replace("nbds:", "nbd:"), "nbds://", StorePermissionError)


def starttls(context: ssl.SSLContext) -> Callable[[Connection], None]:
    def talk(c: Connection) -> None:
        c.greet()
        c.answer(c.wait_for_option(OPT_STARTTLS), REP_ACK)
        c.start_tls(context)
        c.negotiate(size=SIZE)
        c.serve(bytearray(SIZE))

    return talk


@pytest.mark.parametrize(
    ("version", "serves"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
def test_server_of_an_old_tls_is_refused(
    version: ssl.TLSVersion, serves: bool, server_folder: Path, trust: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_folder / "server-cert.pem", server_folder / "server-key.pem")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = version
        context.maximum_version = version
    with ScriptedNbd(starttls(context)) as server:
        uri = server.uri.replace("nbd+", "nbds+")
        if serves:
            with open_store(uri, tls_certificates=trust, tls_hostname="localhost") as store:
                check_both_ways(store)
        else:
            refuse(uri, "TLS 1.2|version", tls_certificates=trust, tls_hostname="localhost")


# Files that are not as they should be


def test_folder_of_certificates_that_is_not_there_or_empty_is_named(server_folder: Path, tmp_path: Path) -> None:
    with serve_tls(server_folder) as server:
        refuse(server.uri, "nowhere", StoreNotFoundError, tls_certificates=tmp_path / "nowhere")
        refuse(server.uri, r"neither ca-cert\.pem nor", StoreNotFoundError, tls_certificates=tmp_path)


def test_files_of_certificates_that_hold_none_are_named(server_folder: Path, authority: Authority) -> None:
    client = authority.make_client("client-of-files")
    key, certificate = client / "client-key.pem", client / "client-cert.pem"
    with serve_tls(server_folder) as server:
        saved = key.read_bytes()
        key.write_text("nothing")
        refuse(server.uri, "client-key.pem holds no key", ValueError, tls_certificates=client)
        key.unlink()
        refuse(server.uri, "client-key.pem is not: both or none", ValueError, tls_certificates=client)
        key.write_bytes(saved)
        certificate.write_text("nothing")
        refuse(server.uri, "client-cert.pem holds no certificate", ValueError, tls_certificates=client)
        certificate.unlink()
        key.unlink()
        (client / "ca-cert.pem").write_text("nothing")
        refuse(server.uri, "ca-cert.pem holds no certificate", ValueError, tls_certificates=client)


def test_key_with_a_password_is_refused_and_nobody_is_asked(server_folder: Path, authority: Authority) -> None:
    client = authority.make_client("client-with-password")
    key = client / "client-key.pem"
    plain = key.rename(client / "plain.pem")
    command = ["certtool", "--to-p8", "--load-privkey", str(plain), "--outfile", str(key)]
    command += ["--password", "secret", "--pkcs-cipher", "aes-128"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with serve_tls(server_folder) as server:
        refuse(server.uri, "without a password", ValueError, tls_certificates=client)


# Losing the server


def test_server_that_comes_back_with_other_certificates_is_known_by_new_files(
    tmp_path: Path, authority: Authority
) -> None:
    trust, folder = authority.make_trust("trust-of-today"), authority.make_server("server-of-today")
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    with (
        serve_tls(folder, plugin=("file", str(image))) as server,
        NbdStore(server.uri, "r+", timeout_seconds=1, retry_seconds=20, tls_certificates=trust) as store,
    ):
        check_both_ways(store)
        server.kill()
        tomorrow = Authority(tmp_path / "tomorrow")
        for file in tomorrow.make_server("server-of-tomorrow").iterdir():
            shutil.copy(file, folder)
        shutil.copy(tomorrow.certificate, trust)
        server.start()
        check_both_ways(store)


def test_threads_on_one_connection_each_get_their_own_bytes(server_folder: Path, trust: Path) -> None:
    """Records hold parts of several replies, and the threads take turns in receiving."""
    size = 16 << 20
    image = random.Random(2).randbytes(size)
    failures: list[BaseException] = []

    def work(store: NbdStore, seed: int, end: float) -> None:
        chance = random.Random(seed)
        try:
            while time.monotonic() < end:
                length = chance.choice([1, 512, 4096, 65536, 300_000])
                offset = chance.randrange(size - length)
                buffer = bytearray(length)
                store.read_into(offset, buffer)
                assert buffer == image[offset : offset + length]
        except BaseException as error:
            failures.append(error)

    with (
        serve_tls(server_folder, plugin=("memory", str(size))) as server,
        NbdStore(server.uri, "r+", connections=1, timeout_seconds=20, tls_certificates=trust) as store,
    ):
        store.write(0, image)
        end = time.monotonic() + 2
        threads = [threading.Thread(target=work, args=(store, seed, end)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.info().reconnects == 0


def test_region_over_tls_pages_in_and_out(server_folder: Path, trust: Path) -> None:
    size = 32 << 20
    with serve_tls(server_folder, plugin=("memory", str(size))) as server, umappy.Pager("8MiB") as pager:
        store = open_store(server.uri, tls_certificates=trust)
        data = random.Random(3).randbytes(size)
        with umappy.umap(store, mode="r+", pager=pager) as region:
            region[:] = data
            region.flush()
        with open_store(server.uri, "r", tls_certificates=trust) as store:
            buffer = bytearray(size)
            store.read_into(0, buffer)
            assert buffer == data


# The end of processes


def test_forked_child_leaves_the_parents_connection_alone(server_folder: Path, trust: Path) -> None:
    with serve_tls(server_folder) as server, open_store(server.uri, tls_certificates=trust) as store:
        child = os.fork()
        if child == 0:
            try:
                store.read_into(0, bytearray(10))
            except ForkedRegionError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        check_both_ways(store)
        assert store.info().reconnects == 0


EXITING = """
import ssl  # OpenSSL is set up by somebody else, and cleans up when the process ends
import sys
import umappy
context = ssl.create_default_context()
uri, folder = sys.argv[1:]
store = umappy.NbdStore(uri, "r+", tls_certificates=folder)
region = umappy.umap(store)
region[:] = b"x" * len(region)
"""


def test_end_of_a_program_flushes_over_tls(server_folder: Path, trust: Path) -> None:
    with serve_tls(server_folder) as server:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", EXITING, server.uri, trust],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        with open_store(server.uri, tls_certificates=trust) as store:
            buffer = bytearray(SIZE)
            store.read_into(0, buffer)
            assert buffer == b"x" * SIZE

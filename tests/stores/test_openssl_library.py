import os
import subprocess
import sys
from pathlib import Path

import pytest

from umappy.__main__ import main
from umappy.stores._openssl_library import find_openssl_library

FIND = """
from umappy._engine import ffi, lib
record = ffi.new("um_error *")
print(lib.um_openssl_find(ffi.new("char const **"), record) < 0, ffi.string(record.text).decode())
"""


def test_find_here_gives_a_version_with_tls_1_3() -> None:
    found = find_openssl_library()
    assert found.version >= (1, 1, 1)
    assert "libssl.so" in found.where


def test_find_gives_the_version_in_the_words_of_the_library_itself() -> None:
    found = find_openssl_library()
    crypto = Path(found.where.replace("libssl", "libcrypto")).read_bytes()
    major, minor, patch = found.version
    assert f"OpenSSL {major}.{minor}.{patch}".encode() in crypto


def test_doctor_tells_the_version_and_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    found = find_openssl_library()
    assert f"{'.'.join(map(str, found.version))} ({found.where})" in capsys.readouterr().out


def test_find_of_a_library_without_its_functions_names_the_first_and_the_remedy(tmp_path: Path) -> None:
    for name in ("libssl.so.3", "libssl.so.1.1"):
        subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", tmp_path / name], check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", FIND],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("True TLS needs OpenSSL")
    assert "it has no SSL_do_handshake" in done.stdout
    assert "apt-get install libssl3" in done.stdout

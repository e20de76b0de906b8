import os
import subprocess
import sys

import pytest

from umappy._engine import ffi, lib
from umappy.stores._zstd_library import find_zstd_library

# In a process of its own: the first library found stays.
FIND = """
from umappy.stores._zstd_library import find_zstd_library
found = find_zstd_library()
print(found.where, found.version)
"""


def find_in_a_process(source: str, before: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", before + FIND],
        env=os.environ | {"UMAPPY_ZSTD": source},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_find_here_gives_a_version_that_does() -> None:
    assert find_zstd_library().version >= (1, 4, 0)


def test_find_twice_gives_the_same() -> None:
    assert find_zstd_library() == find_zstd_library()


def test_find_system_gives_the_shared_library() -> None:
    assert "libzstd.so" in find_in_a_process("system")


def test_find_zstandard_gives_the_one_in_the_package() -> None:
    zstandard = pytest.importorskip("zstandard")
    found = find_in_a_process("zstandard")
    assert "zstandard/_cffi" in found
    assert str(zstandard.ZSTD_VERSION) in found


def test_find_when_both_are_offered_keeps_the_first() -> None:
    before = "import umappy\numappy.config.zstd = 'system'\n" + FIND + "umappy.config.zstd = 'zstandard'\n"
    first, second = find_in_a_process("auto", before).splitlines()
    assert first == second


def test_offer_of_a_library_without_its_functions_names_the_first_missing() -> None:
    offer = """
from umappy._engine import ffi, lib
record = ffi.new("um_error *")
assert lib.um_zstd_offer(ffi.new("void *[100]"), b"somewhere", record) < 0
print(ffi.string(record.text).decode())
"""
    assert "somewhere" in (text := find_in_a_process("auto", offer).splitlines()[0])
    assert "ZSTD_versionNumber" in text
    assert "apt-get install libzstd1" in text


def test_names_end_with_none() -> None:
    count = 0
    while lib.um_zstd_name(count):
        count += 1
    assert count > 30
    assert lib.um_zstd_name(count) == ffi.NULL

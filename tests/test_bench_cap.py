"""benchmarks/harness/cap.py: the memory limit of a contender, with rights and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_cache import drop_cached, list_cached

from bench_documents import BENCHMARKS
from harness.cap import Cap, find_kind, forget_files, make_scope, open_cap

MIB = 1 << 20
LIMIT = 192 * MIB

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups takes root, and so does giving it up")

# Imports first: nobody may read them.
NOBODY = """
import json, os, sys
import harness.cap as cap
os.setgroups([]), os.setgid(65534), os.setuid(65534)
"""
STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" >"$0.arguments"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


@pytest.fixture
def programs() -> Iterator[Path]:
    """A folder for programs that others may run, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def write_program(folder: Path, text: str) -> Path:
    path = folder / "systemd-run"
    path.write_text(text)
    path.chmod(0o755)
    return path


def run_as_nobody(code: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NOBODY + code],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_kind_with_the_right_to_make_cgroups_is_cgroup() -> None:
    assert find_kind() == "cgroup"


def test_cap_of_a_cgroup_limits_what_it_wraps_and_goes_away() -> None:
    with open_cap(LIMIT) as cap:
        assert cap.group is not None
        folder = cap.group.folder
        limits = [folder / name for name in ("memory.limit_in_bytes", "memory.max")]
        assert [int(limit.read_text()) for limit in limits if limit.exists()] == [LIMIT]
        wrapped = cap.wrap(
            [sys.executable, "-c", f"x = bytearray(b'1') * {64 * MIB}; print(open('/proc/self/cgroup').read())"]
        )
        done = subprocess.run(wrapped, capture_output=True, text=True)
        assert folder.name in done.stdout
        peak = cap.read_peak()
        assert peak is not None
        assert 64 * MIB <= peak <= LIMIT
    assert not folder.exists()


def test_cap_of_a_cgroup_counts_tmpfs_by_itself() -> None:
    with open_cap(LIMIT) as cap, tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        assert cap.read_shared_memory() == 0
        subprocess.run(
            cap.wrap(["dd", "if=/dev/zero", f"of={file.name}", "bs=1M", "count=8"]), check=True, capture_output=True
        )
        assert cap.read_shared_memory() >= 8 * MIB


def test_kind_without_rights_and_systemd_is_none_and_says_why(programs: Path) -> None:
    done = run_as_nobody("print(cap.find_kind())", str(programs))
    assert done.stdout.strip() == "none", done.stderr
    assert "NO MEMORY LIMIT" in done.stderr
    assert "Permission denied" in done.stderr
    assert "no systemd-run" in done.stderr


def test_kind_where_systemd_refuses_is_none_and_says_why(programs: Path) -> None:
    write_program(programs, "#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
    done = run_as_nobody("print(cap.find_kind())", f"{programs}:/usr/bin:/bin")
    assert done.stdout.strip() == "none", done.stderr
    assert "systemd-run: Failed to connect to bus" in done.stderr


def test_kind_where_systemd_makes_scopes_is_systemd_and_runs_commands_in_one(programs: Path) -> None:
    program = write_program(programs, STAND_IN)
    code = f"""
with cap.open_cap({LIMIT}) as made:
    command = made.wrap(["echo", "it ran"])
    print(json.dumps([made.kind, made.read_peak(), made.read_shared_memory()]), flush=True)
    os.execvp(command[0], command)
"""
    done = run_as_nobody(code, f"{programs}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    told, ran = done.stdout.splitlines()
    assert json.loads(told) == ["systemd", None, 0]
    assert ran == "it ran"
    arguments = Path(f"{program}.arguments").read_text().splitlines()
    assert arguments[:2] == ["--user", "--scope"]
    assert f"--property=MemoryMax={LIMIT}" in arguments
    assert "--property=MemorySwapMax=0" in arguments
    assert arguments[-3:] == ["--", "echo", "it ran"]
    assert "NO MEMORY LIMIT" not in done.stderr


def test_cap_without_a_limit_leaves_the_command_as_it_is() -> None:
    cap = Cap("none", LIMIT)
    assert cap.wrap(["echo", "x"]) == ["echo", "x"]
    assert cap.read_peak() is None
    assert cap.read_shared_memory() == 0


def test_scope_ends_its_own_options_before_the_command() -> None:
    command = make_scope(LIMIT, ["echo", "--user"])
    assert command[0] == "systemd-run"
    assert command[command.index("--") + 1 :] == ["echo", "--user"]


@pytest.fixture
def cached(programs: Path) -> Path:
    """A file on a disk, durable and in the page cache, in a folder of a folder."""
    path = programs / "inner" / "file"
    path.parent.mkdir()
    path.write_bytes(b"1" * MIB)
    drop_cached(path)
    path.read_bytes()
    return path


def test_forgetting_files_empties_the_page_cache(cached: Path) -> None:
    forget_files(None)
    assert list_cached(cached) == []


def test_forgetting_files_without_rights_empties_it_of_those_in_the_folder(cached: Path, programs: Path) -> None:
    done = run_as_nobody(f"cap.forget_files({str(programs)!r})", os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    assert list_cached(cached) == []

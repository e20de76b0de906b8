"""The command line: `umappy sort`, `umappy doctor`, and what all commands share."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy.__main__ import main
from umappy._sort import scratch
from umappy.cli import doctor
from umappy.cli import sort as sort_command
from umappy.cli.table import format_table

MIB = 1 << 20


@pytest.fixture
def numbers(tmp_path: Path) -> np.ndarray:
    values = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 2 * MIB)
    values.tofile(tmp_path / "in")
    return values


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_sort_writes_the_sorted_file_and_leaves_the_input(numbers: np.ndarray, tmp_path: Path) -> None:
    assert run("sort", tmp_path / "in", tmp_path / "out", "--memory", "4MiB") == 0
    assert np.fromfile(tmp_path / "out", np.int64).tobytes() == np.sort(numbers).tobytes()
    assert np.fromfile(tmp_path / "in", np.int64).tobytes() == numbers.tobytes()


def test_sort_in_place_sorts_the_input(numbers: np.ndarray, tmp_path: Path) -> None:
    assert run("sort", tmp_path / "in", "--in-place", "--memory", "4MiB", "--dtype", ">u8") == 0
    assert np.fromfile(tmp_path / "in", ">u8").tobytes() == np.sort(numbers.view(">u8")).tobytes()


def test_sort_of_records_takes_fields_and_order(tmp_path: Path) -> None:
    dtype = np.dtype([("key", "S2"), ("value", "<f4"), ("rank", "i2")])
    records = np.frombuffer(np.random.default_rng(2).bytes(dtype.itemsize * 1000), dtype)
    records.tofile(tmp_path / "in")
    fields = "[('key', 'S2'), ('value', '<f4'), ('rank', 'i2')]"
    arguments = ("--dtype", fields, "--order", "rank,key", "--memory", "4MiB")
    assert run("sort", tmp_path / "in", tmp_path / "out", *arguments) == 0
    got = np.fromfile(tmp_path / "out", dtype)
    assert got[["rank", "key"]].tolist() == np.sort(records, order=["rank", "key"])[["rank", "key"]].tolist()


def test_sort_of_an_empty_file_makes_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "in").touch()
    assert run("sort", tmp_path / "in", tmp_path / "out") == 0
    assert (tmp_path / "out").read_bytes() == b""


def test_sort_with_overwrite_replaces_the_output(numbers: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old" * 10 * MIB)
    assert run("sort", tmp_path / "in", tmp_path / "out", "--memory", "32MiB", "--overwrite") == 0
    assert np.fromfile(tmp_path / "out", np.int64).tobytes() == np.sort(numbers).tobytes()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["missing", "out"], 1, "missing"),
        (["in"], 2, "--in-place"),
        (["in", "out", "--in-place"], 2, "not both"),
        (["in", "in"], 2, "IN itself"),
        (["in", "there"], 1, "--overwrite"),
        (["in", "out", "--dtype", "int7"], 2, "int7"),
        (["in", "out", "--dtype", "S"], 2, "length"),
        (["in", "out", "--dtype", "[("], 2, "fields"),
        (["in", "out", "--dtype", "S7"], 1, "multiple of 7"),
        (["in", "out", "--dtype", "f8", "--order", "x"], 1, "order"),
        (["in", "out", "--memory", "4G"], 1, "4GiB"),
        (["in", "out", "--memory", "64KiB"], 1, "budget"),
        (["in", "out", "--memory", "4MiB", "--scratch-dir", "nowhere"], 2, "nowhere"),
        (["a.npy", "out"], 1, "header"),
    ],
)
def test_sort_with_what_is_wrong_says_so_and_makes_no_output(
    arguments: list[str],
    status: int,
    words: str,
    numbers: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_bytes(b"precious")
    np.save(tmp_path / "a.npy", numbers[:10])
    assert run("sort", *arguments) == status
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "there").read_bytes() == b"precious"
    assert np.fromfile(tmp_path / "in", np.int64).tobytes() == numbers.tobytes()


def test_sort_without_enough_disk_says_how_much_is_needed(
    numbers: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sort_command, "free_bytes", lambda folder: 20 * MIB)
    assert run("sort", tmp_path / "in", tmp_path / "out", "--memory", "4MiB") == 1
    assert "20 MiB free" in (said := capsys.readouterr().err)
    assert "32 MiB" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_sort_on_a_disk_that_fills_up_removes_the_output(
    numbers: np.ndarray, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for module in (sort_command, scratch):
        monkeypatch.setattr(module, "free_bytes", lambda folder: 1 << 40)  # somebody takes it meanwhile
    monkeypatch.setenv("UMAPPY_TIMEOUT_SECONDS", "2")
    (small_disk / "other").write_bytes(bytes(12 * MIB))  # so that scratch is what does not fit
    assert run("sort", tmp_path / "in", small_disk / "out", "--memory", "4MiB") == 1
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "neither a nor out was changed" in said
    assert list(small_disk.iterdir()) == [small_disk / "other"]
    assert np.fromfile(tmp_path / "in", np.int64).tobytes() == numbers.tobytes()


def test_sort_interrupted_removes_the_output_and_exits_with_130(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 48 * MIB // 8)
    numbers.tofile(tmp_path / "in")
    command = [sys.executable, "-m", "umappy", "sort", tmp_path / "in", tmp_path / "out", "--memory", "4MiB"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 30
        while not (tmp_path / "out").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=30)[1]
    assert child.returncode == 130, said
    assert "interrupted" in said
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert np.fromfile(tmp_path / "in", np.int64).tobytes() == numbers.tobytes()


def test_doctor_tells_of_ways_features_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    said = capsys.readouterr().out
    for words in ("/dev/userfaultfd", "user-mode-only", "write protection", "moving pages", "budget"):
        assert words in said
    for setting, value in [
        ("page size", "4 KiB (auto)"),
        ("what leaves memory first", "auto"),
        ("how large runs get into memory", r"(copy|move) \(.*\)"),
        (r"many reads from one thread \(io_uring\)", "(works|no: .*)"),
    ]:
        assert re.search(rf"^{setting} +{value if '|' in value else re.escape(value)}$", said, re.MULTILINE), setting
    assert said.count("works") >= 1


def test_doctor_tells_settings_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in [("MECHANISM", "copy"), ("POLICY", "s3fifo"), ("PAGE_SIZE", "64KiB"), ("IO_URING", "0")]:
        monkeypatch.setenv(f"UMAPPY_{name}", text)
    assert run("doctor") == 0
    said = capsys.readouterr().out
    for value in ("copy (copy)", "s3fifo", "64 KiB", "switched off"):
        assert re.search(rf" {re.escape(value)}$", said, re.MULTILINE), value


def test_doctor_where_nothing_works_names_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda way: (0, -1))
    assert run("doctor") == 1
    said = capsys.readouterr().out
    assert "Operation not permitted" in said
    assert "--device /dev/userfaultfd" in said


def test_main_without_a_command_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "usage: umappy" in capsys.readouterr().err


def test_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "umappy", "--help"], capture_output=True, text=True, check=True)
    assert "sort" in done.stdout
    assert umappy.__name__ in done.stdout


def test_table_lines_up_its_columns() -> None:
    assert format_table("Title", ["", "a"], [["x", "1"], ["long", "22"]]) == (
        "Title\n       a\n----  --\nx      1\nlong  22\n"
    )

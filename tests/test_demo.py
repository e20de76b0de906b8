"""`umappy demo`, its proof, and its comparison."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from umappy.__main__ import main
from umappy.cli import demo, trial
from umappy.cli.cgroup import CgroupError, open_cgroup
from umappy.cli.data import check_file, write_random
from umappy.cli.trial import Figures, Stopped, run_trial

MIB = 1 << 20


def read_cell(said: str, row: str, column: int = 0) -> str:
    line = next(line for line in said.splitlines() if line.startswith(row))
    return re.split(r"\s{2,}", line)[1 + column]


def test_demo_sorts_proves_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--size", "48MiB", "--memory", "8MiB", "--dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for row in ("in order", "same values"):
        assert [read_cell(said, row, column) for column in (0, 1)] == ["yes", "yes"]
    assert float(read_cell(said, "seconds")) > 0
    assert int(read_cell(said, "faults").replace(",", "")) > 0
    assert 95 < float(read_cell(said, "bytes written").split()[0]) < 110
    assert "times as long" in said
    assert list(tmp_path.iterdir()) == []


def test_demo_keeps_within_the_budget(tmp_path: Path) -> None:
    write_random(str(tmp_path / "numbers"), 96 * MIB, 1)
    figures = run_trial("umappy", str(tmp_path / "numbers"), 16 * MIB, None)
    assert isinstance(figures, Figures)
    assert figures.peak_bytes <= 16 * MIB + 8 * MIB  # stacks of the threads, the interpreter's own


def test_demo_without_a_cgroup_says_that_the_comparison_is_not_fair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(limit: int) -> None:
        raise CgroupError("not here")

    monkeypatch.setattr(demo, "open_cgroup", refuse)
    monkeypatch.setattr(demo, "drop_page_cache", lambda: False)
    assert main(["demo", "--size", "8MiB", "--memory", "4MiB", "--dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no memory cgroup could be made (not here)" in said
    assert "not a fair one" in said
    assert "could not be dropped" in said
    assert read_cell(said, "peak of the cgroup") == "-"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--size", "8"], 2, "--size"),
        (["--size", "2G"], 1, "2GiB"),
        (["--memory", "1MiB"], 2, "at least 4 MiB"),
        (["--dir", "/nowhere"], 2, "/nowhere"),
        (["--size", "1000TiB"], 1, "free"),
    ],
)
def test_demo_with_what_is_wrong_says_so(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == status
    assert words in capsys.readouterr().err


def test_demo_interrupted_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "umappy", "demo", "--size", "256MiB", "--memory", "8MiB", "--dir", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        while "sorting" not in child.stdout.readline():
            assert child.poll() is None
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=30)[1]
    assert child.returncode == 130, said
    assert "interrupted" in said
    assert list(tmp_path.iterdir()) == []


def test_demo_tells_when_the_result_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = demo.run_trial

    def swap_two(kind: str, path: str, *args: object, **options: object) -> object:
        figures = real(kind, path, *args, **options)  # type: ignore[arg-type]
        numbers = np.fromfile(path, np.int64)
        numbers[[5, 6]] = numbers[[6, 5]]
        numbers.tofile(path)
        return figures

    monkeypatch.setattr(demo, "run_trial", swap_two)
    assert main(["demo", "--size", "8MiB", "--memory", "4MiB", "--dir", str(tmp_path), "--no-memmap"]) == 1
    captured = capsys.readouterr()
    assert read_cell(captured.out, "in order") == "NO"
    assert read_cell(captured.out, "same values") == "yes"
    assert "bug" in captured.err


def test_digest_changes_with_a_value_that_keeps_the_sum(tmp_path: Path) -> None:
    path = str(tmp_path / "numbers")
    before = write_random(path, 1 * MIB, 7)
    assert check_file(path).digest == before
    numbers = np.fromfile(path, np.int64)
    np.random.default_rng(0).permutation(numbers).tofile(path)
    assert check_file(path).digest == before
    numbers[10] += 1
    numbers[20] -= 1
    numbers.tofile(path)
    after = check_file(path).digest
    assert after.total == before.total
    assert after != before


def test_check_finds_disorder_where_blocks_meet(tmp_path: Path) -> None:
    numbers = np.arange(3 << 20)
    numbers.tofile(tmp_path / "numbers")
    assert check_file(str(tmp_path / "numbers")).is_ordered
    numbers[(1 << 20) - 1 : (1 << 20) + 1] = numbers[(1 << 20) - 1 : (1 << 20) + 1][::-1].copy()
    numbers.tofile(tmp_path / "numbers")
    assert not check_file(str(tmp_path / "numbers")).is_ordered


def test_trial_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    write_random(str(tmp_path / "numbers"), 64 * MIB, 1)
    started = time.monotonic()
    stopped = run_trial("umappy", str(tmp_path / "numbers"), 4 * MIB, None, timeout_seconds=0.3)
    assert isinstance(stopped, Stopped)
    assert time.monotonic() - started < 15


def test_trial_that_fails_tells_why(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"umappy failed.*missing"):
        run_trial("umappy", str(tmp_path / "missing"), 4 * MIB, None)


def test_cgroup_limits_its_command_and_is_removed() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a cgroup")
    with open_cgroup(64 * MIB) as group:
        script = "print(len(bytearray(16 << 20)))"
        subprocess.run(group.wrap([sys.executable, "-c", script]), check=True, capture_output=True)
        peak = group.read_peak()
        assert peak is None or 16 * MIB <= peak <= 64 * MIB
        over = subprocess.run(group.wrap([sys.executable, "-c", script.replace("16", "256")]), capture_output=True)
        assert over.returncode == -signal.SIGKILL
        folder = group.folder
    assert not folder.exists()


def test_trial_counts_what_the_kernel_reads_and_writes_for_memmap(tmp_path: Path) -> None:
    write_random(str(tmp_path / "numbers"), 16 * MIB, 1)
    figures = run_trial("memmap", str(tmp_path / "numbers"), 4 * MIB, None)
    assert isinstance(figures, Figures)
    assert figures.faults > 0
    assert trial.read_status("VmRSS") > 0
    assert check_file(str(tmp_path / "numbers")).is_ordered

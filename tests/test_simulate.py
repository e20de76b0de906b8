"""`umappy simulate`: the table and the chart, on traces made here; and what it says when something is wrong."""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from umappy.__main__ import main
from umappy.cli.chart import draw_chart
from umappy.cli.simulate import choose_sizes, parse_sizes
from umappy.trace import MAGIC, read_trace

KIB = 1 << 10


def code_number(number: int) -> bytes:
    coded = bytearray()
    while number >= 0x80:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*coded, number])


def write_trace(path: Path, pages: Iterable[int], lost: int = 0) -> Path:
    """Read faults on one region of pages of 4 KiB, a microsecond apart."""
    data = bytearray(MAGIC + bytes([1, 0, 1, 0, 0, 0, 0, 0]) + bytes(8) + b"\x80\x00\x80\x20" + code_number(1 << 40))
    last = count = 0
    for page in pages:
        step = int(page) - last
        data += b"\x00" + code_number(step << 1 if step >= 0 else (-step << 1) - 1) + b"\x01"
        last, count = int(page), count + 1
    if lost:
        data += b"\x81" + code_number(lost)
    path.write_bytes(data + b"\x82" + code_number(count) + code_number(lost))
    return path


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "loop", np.tile(np.arange(128), 5))


def run(*arguments: object) -> int:
    return main(["simulate", *map(str, arguments)])


def test_simulate_prints_hits_of_every_policy_and_size(loop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(loop, "--memory", "512KiB,256KiB") == 0
    said = capsys.readouterr().out
    assert "640 faults on 512 KiB of pages" in said
    lines = [line.split() for line in said.splitlines()]
    assert lines[1] == ["memory", "fifo", "second_chance", "s3fifo", "mru", "auto"]
    cells = {" ".join(line[:2]): line[2::2] for line in lines[3:5]}
    assert cells["512 KiB"] == ["80.0"] * 5
    fifo, second_chance, _, mru, auto = map(float, cells["256 KiB"])
    assert fifo == second_chance == 0
    assert 35 <= mru <= 40
    assert auto >= 25


def test_simulate_draws_the_curve(loop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(loop, "--memory", "256KiB,512KiB", "--policy", "mru,fifo") == 0
    said = capsys.readouterr().out
    assert " 80 % |             *" in said
    assert "m mru, f fifo, * several" in said


def test_simulate_without_memory_takes_sizes_up_to_the_working_set(
    loop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(loop, "--policy", "fifo") == 0
    said = capsys.readouterr().out
    for size in ("64 KiB", "128 KiB", "256 KiB", "512 KiB"):
        assert f"\n{size} " in said
    assert "32 KiB" not in said


def test_simulate_without_standby_has_no_hits_of_second_chance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = np.random.default_rng(1).permutation(np.repeat(np.arange(100), 20))
    trace = write_trace(tmp_path / "random", pages)
    rows = []
    for switch in ("--standby", "--no-standby"):
        assert run(trace, "--memory", "160KiB", "--policy", "fifo,second_chance", switch) == 0
        rows.append(capsys.readouterr().out.splitlines()[3].split())
    assert rows[0][2] == rows[1][2]
    assert rows[0][4] != rows[0][2]
    assert rows[1][4] == rows[1][2]


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_simulate_plot_writes_a_picture(name: str, loop: Path, tmp_path: Path) -> None:
    assert run(loop, "--memory", "256KiB,512KiB", "--plot", tmp_path / name) == 0
    start = (tmp_path / name).read_bytes()[:200]
    assert b"PNG" in start or b"<?xml" in start


def test_simulate_plot_without_matplotlib_names_the_extra(
    loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert run(loop, "--plot", tmp_path / "curve.png") == 1
    assert "pip install 'umappy[plot]'" in capsys.readouterr().err


def test_simulate_tells_of_faults_that_were_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_trace(tmp_path / "lossy", range(100), lost=1234), "--policy", "fifo") == 0
    assert "1,234 more were not recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["missing"], 1, "missing"),
        (["garbage"], 1, "no fault trace"),
        (["cut"], 1, "ends too early"),
        (["empty"], 1, "holds no faults"),
        (["loop", "--memory", "4G"], 2, "4GiB"),
        (["loop", "--memory", "1KiB"], 2, "less than a page of 4 KiB"),
        (["loop", "--policy", "lru"], 2, "wants one of 'fifo'"),
        (["loop", "--plot", "curve.doc"], 2, "ends in one of"),
    ],
)
def test_simulate_of_what_is_wrong_says_so(
    arguments: list[str],
    status: int,
    words: str,
    loop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage").write_bytes(b"what is this? not a trace, surely")
    (tmp_path / "cut").write_bytes(loop.read_bytes()[:-10])
    write_trace(tmp_path / "empty", [])
    assert run(*arguments) == status
    assert words in capsys.readouterr().err


def test_simulate_partial_takes_a_trace_without_an_end(loop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop.write_bytes(loop.read_bytes()[:-10])
    assert run(loop, "--partial", "--policy", "fifo", "--memory", "1MiB") == 0
    assert "638 faults" in capsys.readouterr().out


def test_sizes_rise_and_hold_whole_pages() -> None:
    assert parse_sizes("1MiB, 64KiB,1MiB") == [64 * KIB, 1024 * KIB]
    assert choose_sizes(100 * 64 * KIB, 64 * KIB) == [25 * 64 * KIB, 50 * 64 * KIB, 100 * 64 * KIB]
    assert choose_sizes(3 * 4 * KIB, 4 * KIB) == [12 * KIB]


def test_chart_puts_marks_at_their_ratios() -> None:
    lines = draw_chart(["fifo", "auto"], ["a", "b"], [[0.0, 1.0], [0.5, 0.5]])
    assert lines[0].rstrip() == "100 % | a"
    assert lines[10].rstrip() == " 50 % |    *"
    assert lines[20].rstrip() == "  0 % | f"


def test_trace_written_here_is_what_the_reader_reads(loop: Path) -> None:
    assert read_trace(loop).faults["page"].tolist() == list(range(128)) * 5

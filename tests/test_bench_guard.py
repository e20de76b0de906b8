"""benchmarks/compare.py: what became slower beside its peers is told, and noise is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench_documents import make_document, make_entry, run_program, write_document
from findings.guard import judge
from findings.model import Findings
from findings.read import FindingsError, parse_findings

PEER = [10.0, 10.0, 10.0]


def find(ours: Sequence[float], peer: Sequence[float] = PEER, scale: str = "quick") -> Findings:
    entries = [make_entry("sum", "umappy", ours), make_entry("sum", "np.memmap", peer)]
    return parse_findings(make_document(entries, scale=scale))


def test_umappy_that_takes_longer_beside_the_same_peer_is_worse() -> None:
    verdict = judge(find([1.0, 1.1, 1.2]), find([2.0, 2.2, 2.4]))
    [change] = verdict.worse
    assert change.slower_by == pytest.approx(2.0)


def test_machine_that_is_slower_for_all_is_no_regression() -> None:
    assert judge(find([1.0, 1.1, 1.2]), find([5.0, 5.5, 6.0], [50.0, 50.0, 50.0])).worse == ()


def test_umappy_as_fast_beside_a_peer_that_gained_is_told() -> None:
    """The peer is the clock: nothing else says how fast the machine is."""
    assert len(judge(find([1.0, 1.0, 1.0]), find([1.0, 1.0, 1.0], [5.0, 5.0, 5.0])).worse) == 1


@pytest.mark.parametrize("now", [[1.2, 1.2, 1.2], [0.5, 0.5, 0.5]])
def test_change_within_the_tolerance_or_for_the_better_passes(now: list[float]) -> None:
    assert judge(find([1.0, 1.0, 1.0]), find(now)).worse == ()


def test_change_within_the_spreads_is_noise() -> None:
    assert judge(find([1.0, 1.0, 3.0]), find([1.5, 2.5, 2.5])).worse == ()
    assert len(judge(find([1.0, 1.0, 1.4]), find([1.5, 2.5, 2.5])).worse) == 1


def test_tolerance_is_what_was_asked_for() -> None:
    assert judge(find([1.0] * 3), find([1.5] * 3), 0.6).worse == ()
    assert len(judge(find([1.0] * 3), find([1.1] * 3), 0.05).worse) == 1
    with pytest.raises(FindingsError, match="tolerance is -1"):
        judge(find([1.0] * 3), find([1.0] * 3), -1)


def test_every_way_of_ours_is_guarded_and_none_is_a_peer() -> None:
    def make(way: float) -> Findings:
        entries = [
            make_entry("loop", name, [seconds] * 3)
            for name, seconds in {"umappy": 1.0, "umappy fifo": way, "np.memmap": 9.0}.items()
        ]
        return parse_findings(make_document(entries))

    verdict = judge(make(1.0), make(2.0))
    assert [change.pair[1:] for change in verdict.worse] == [("umappy fifo", "np.memmap")]
    assert len(verdict.changes) == 2


def test_change_of_one_round_is_told_but_not_judged() -> None:
    verdict = judge(find([1.0], [10.0]), find([2.0], [10.0]))
    assert verdict.worse == ()
    assert len(verdict.unsure) == 1


@pytest.mark.parametrize(("others", "count"), [(["numpy in RAM", "np.memmap"], 1), (["numpy in RAM", "device"], 2)])
def test_ceilings_are_a_clock_only_where_there_is_no_peer(others: list[str], count: int) -> None:
    entries = [make_entry("sum", name, [1.0, 1.0]) for name in ["umappy", *others]]
    findings = parse_findings(make_document(entries))
    assert len(judge(findings, findings).changes) == count


def test_runs_of_different_scales_or_subjects_do_not_compare() -> None:
    with pytest.raises(FindingsError, match="scale quick and the other of scale full"):
        judge(find([1.0] * 3), find([1.0] * 3, scale="full"))
    other = [make_entry("sort", "umappy", [1.0]), make_entry("sort", "np.memmap", [1.0])]
    with pytest.raises(FindingsError, match="no comparison in common"):
        judge(find([1.0] * 3), parse_findings(make_document(other)))


def test_compare_exits_with_1_and_a_table_of_what_is_worse(tmp_path: Path) -> None:
    extra = [make_entry("sort", name, [1.0], axis={"size": 1 << 30}) for name in ("umappy", "polars")]
    base = write_document(
        tmp_path / "base.json", [make_entry("sum", "umappy", [1.0] * 3), make_entry("sum", "zarr", PEER), *extra]
    )
    now = write_document(
        tmp_path / "now.json", [make_entry("sum", "umappy", [2.0] * 3), make_entry("sum", "zarr", PEER)]
    )
    done = run_program("compare.py", base, now)
    assert done.returncode == 1, done.stderr
    assert "not measured now: sort, size 1 GiB, fast: polars / umappy" in done.stdout
    assert "1 ratios compared, 1 worse by more than 25%" in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("sum, fast"))
    assert row[-1] == "2.00x"


def test_compare_exits_with_0_where_nothing_is_worse_and_2_for_bad_files(tmp_path: Path) -> None:
    entries = [make_entry("sum", "umappy", [1.0]), make_entry("sum", "zarr", [1.0])]
    base = write_document(tmp_path / "base.json", entries)
    assert run_program("compare.py", base, base).returncode == 0
    done = run_program("compare.py", base, tmp_path / "missing.json")
    assert done.returncode == 2
    assert "No such file" in done.stderr

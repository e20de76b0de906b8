"""benchmarks/: the harness measures, checks and reports. Not how fast anything is."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MIB = 1 << 20
LIMIT = 256 * MIB

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups, mounts and dropping the page cache take root")


@pytest.fixture(autouse=True)
def path_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@needs_root
def test_targets_on_a_small_file_measure_and_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    what = "--rows sequential,random,writes --devices fast --rounds 1 --reads 200 --limit-seconds 0.01"
    sizes = "--size 16MiB --limit 256MiB --memory 8MiB"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "targets.py", *what.split(), *sizes.split(), "--json", report],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(report.read_text())["results"]
    assert len(results) == 15
    for result in results:
        assert result["row"] in done.stdout
        assert result["verdict"] in {"pass", "fail", "-"}
    sequential = results[0]["rounds"]
    assert sequential["umappy"][0]["values"]["fills"] > 0
    assert sequential["umappy"][0]["device_bytes_read"] >= 16 * MIB
    assert sequential["np.memmap"][0]["device_bytes_read"] >= 16 * MIB
    assert sequential["umappy"][0]["user_seconds"] + sequential["umappy"][0]["system_seconds"] > 0
    assert 8 * MIB < sequential["umappy"][0]["cgroup_peak_bytes"] <= LIMIT
    assert sequential["device"][0]["values"]["random"] > 0
    writes = results[-1]["rounds"]["umappy"][0]
    assert writes["device_bytes_written"] >= 200 * 4096 * 0.9  # a few lie in the same block


@needs_root
def test_collected_benchmarks_measure_and_publish(tmp_path: Path) -> None:
    """Of those that need no library but numpy."""
    report = tmp_path / "report.json"
    files = [BENCHMARKS / "bench_loop.py", BENCHMARKS / "bench_threads.py"]
    options = ["--scale", "tiny", "--rounds", "2", "-W", "default", "-o", "faulthandler_timeout=0"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, *options, f"--benchmark-json={report}"],
        cwd=BENCHMARKS.parent,
        # Where workers run the tests, pytest-benchmark would do nothing.
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    found = [benchmark["extra_info"] for benchmark in json.loads(report.read_text())["benchmarks"]]
    ours = [each for each in found if each["contender"] == "umappy"]
    assert {each["axis"].get("threads") for each in ours} == {None, 1, 64}
    assert all(each["cap"] == "cgroup" and each["peak_bytes"][0] <= each["limit"] for each in found)
    assert all(each["device_bytes_read"][0] > 0 for each in ours)
    docs = tmp_path / "docs"
    publish = [sys.executable, BENCHMARKS / "publish.py", report, "--docs", docs]
    done = subprocess.run(publish, env=os.environ | {"PYTHONPATH": str(BENCHMARKS)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "np.memmap MADV_RANDOM" in (docs / "performance.md").read_text()
    assert len(list((docs / "performance").glob("*.png"))) == 1


@needs_root
def test_nbd_on_a_small_file_measures_and_reports(tmp_path: Path) -> None:
    if shutil.which("nbdkit") is None or not Path("/usr/include/libnbd.h").exists():
        pytest.skip("needs nbdkit, libnbd-bin and libnbd-dev (apt-get install)")
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "nbd.py", "--rounds", "1", "--reads", "100", "--limit-seconds", "0.01"),
            *("--size", "64MiB", "--limit", "256MiB", "--memory", "32MiB", "--json", report),
        ],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(report.read_text())["results"]
    assert len(results) == 9
    assert all(result["ratios"] and result["verdict"] in {"pass", "fail", "-"} for result in results)


@needs_root
def test_trial_with_another_result_than_expected_fails() -> None:
    from harness.errors import ContenderError
    from harness.trial import Trial
    from rows.sequential import RESIDENT_PASSES, sum_resident

    right, memory = 3.0 * RESIDENT_PASSES * 4 * MIB / 8, {"memory": 4 * MIB}
    assert Trial(sum_resident, memory, LIMIT, expected={"sum": right}).run().seconds > 0
    with pytest.raises(ContenderError, match="wrong result: sum"):
        Trial(sum_resident, memory, LIMIT, expected={"sum": right + 1}).run()


@needs_root
def test_trial_that_passes_its_limit_or_raises_fails_with_the_reason() -> None:
    from harness.errors import ContenderError
    from harness.trial import Trial
    from rows.sequential import sum_memmap, sum_resident

    with pytest.raises(ContenderError, match="out of memory"):
        Trial(sum_resident, {"memory": 32 * MIB}, 16 * MIB).run()
    with pytest.raises(ContenderError, match="missing"):
        Trial(sum_memmap, {"path": "/missing"}, LIMIT).run()


@needs_root
def test_trial_that_is_charged_for_the_memory_behind_a_device_fails() -> None:
    from harness.errors import ContenderError
    from harness.trial import Trial
    from rows.update import add_memmap

    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(8 * MIB)
        with pytest.raises(ContenderError, match="shared memory were charged"):
            Trial(add_memmap, {"path": file.name}, LIMIT).run()


def test_contender_that_gave_up_is_left_out_and_the_others_go_on() -> None:
    from harness.errors import ContenderError
    from harness.rounds import alternate
    from harness.sample import Sample

    def give_up() -> Sample:
        raise ContenderError("killed")

    rounds = alternate({"killed": give_up, "there": lambda: Sample(seconds=1.0)}, 3)
    assert len(rounds.samples["there"]) == 3
    assert str(rounds.find_problem("there", "killed")) == "killed"


def test_comparison_takes_the_median_of_the_ratios_of_rounds() -> None:
    from harness.figures import seconds_side
    from harness.result import Target, compare, divide
    from harness.rounds import Rounds
    from harness.sample import Sample

    samples = {"peer": [2.0, 9.0, 10.0], "ours": [1.0, 3.0, 1.0]}
    rounds = Rounds({name: [Sample(seconds=each) for each in values] for name, values in samples.items()}, {})

    def judge(target: Target) -> tuple[float | None, str]:
        result = compare("row", "fast", rounds, seconds_side("peer"), seconds_side("ours"), divide, target)
        return result.ratio, result.verdict

    assert judge(Target("at least", 3.0)) == (3.0, "pass")
    assert judge(Target("at least", 3.1)) == (3.0, "fail")
    assert judge(Target("at most", 2.9)) == (3.0, "fail")


def test_number_file_has_the_elements_and_the_sum_it_tells(tmp_path: Path) -> None:
    from harness.number_file import NumberFile, compute_sum, compute_values

    numbers = NumberFile(str(tmp_path / "numbers"), (1 << 20) + 1000)
    numbers.write()
    held = np.fromfile(numbers.path, np.float64)
    assert len(held) == numbers.count
    assert held.sum() == compute_sum(numbers.count) == numbers.read_sum()
    indices = numbers.pick(100, seed=5)
    assert (held[indices] == compute_values(indices)).all()
    with open(numbers.path, "r+b") as file:
        file.seek(8 * int(indices[0]))
        file.write(np.float64(-1).tobytes())
    assert numbers.read_sum() != compute_sum(numbers.count)
    numbers.restore(indices)
    assert numbers.read_sum() == compute_sum(numbers.count)

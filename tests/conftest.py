"""Settings of the whole test run: Hypothesis profiles, and no skips in CI. Places to put files: with direct I/O for
certain, or nearly full.

A test that skips because the machine lacks root or userfaultfd says nothing about the code; on a developer's machine
that is their choice, in CI (CI=true) it is a failure.
"""

import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import cast

import hypothesis
import pytest

from umappy.stores import FileStore

# A page fault under load may take longer than any deadline that would still catch something.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")

# Tests start Python processes in this folder; the package they import is the one installed, not the one beside them.
os.environ["PYTHONSAFEPATH"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stress-seconds", type=float, default=5.0, help="how long each test marked stress runs (default: 5)"
    )


@pytest.fixture
def stress_seconds(request: pytest.FixtureRequest) -> float:
    """How long a test marked `stress` is to go on."""
    return cast(float, request.config.getoption("--stress-seconds"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped in CI, where everything must run: {reason}"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """mount(kind, size): a fresh file system of that size in its own folder; "tmpfs", or "ext4" on a loop device."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    undo: list[list[str]] = []

    def mount(kind: str, size: int, image: Path | None = None) -> Path:
        folder = tmp_path / f"mount{len(undo)}"
        folder.mkdir()
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
        else:
            image = image or tmp_path / f"image{len(undo)}"
            with image.open("wb") as file:
                file.truncate(size)
            run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
            device = run("losetup", "-f", "--show", str(image)).strip()
            undo.append(["losetup", "-d", device])
            run("mount", device, str(folder))
        undo.append(["umount", str(folder)])
        return folder

    yield mount
    for command in reversed(undo):
        run(*command)


@pytest.fixture
def direct_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder whose file system has direct I/O."""
    probe = tmp_path / "probe"
    with FileStore(probe, "w+", size=4096) as store:
        works = store.direct
    probe.unlink()
    return tmp_path if works else request.getfixturevalue("mount")("ext4", 64 << 20)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

"""Settings of the whole test run: Hypothesis profiles, and no skips in CI.

A test that skips because the machine lacks root or userfaultfd says nothing about the code; on a developer's machine
that is their choice, in CI (CI=true) it is a failure.
"""

import os
from collections.abc import Generator
from typing import cast

import hypothesis
import pytest

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

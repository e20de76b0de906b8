"""conftest.py turns skips into failures in CI, and only there."""

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"

TESTS = """
import pytest

def test_runs(): pass
def test_skips_inside(): pytest.skip("no root")
@pytest.mark.skipif(True, reason="no uffd")
def test_skips_by_mark(): pass
@pytest.mark.xfail(reason="known")
def test_fails_as_expected(): assert False
"""
MODULE = """
import pytest
pytest.importorskip("umappy_needs_this")
"""


def run_with_conftest(pytester: pytest.Pytester, **modules: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(**modules)
    return pytester.runpytest_subprocess("-p", "no:xdist", "-p", "no:cacheprovider")


def test_skipped_test_in_ci_fails_with_its_reason(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = run_with_conftest(pytester, test_skips=TESTS)
    result.assert_outcomes(passed=1, failed=1, errors=1, xfailed=1)
    result.stdout.re_match_lines_random(
        [".*skipped in CI.*Skipped: no root", ".*skipped in CI.*Skipped: no uffd"],
    )


def test_skipped_module_in_ci_fails_with_its_reason(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = run_with_conftest(pytester, test_module=MODULE)
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines_random([".*skipped in CI.*could not import 'umappy_needs_this'.*"])


def test_skips_elsewhere_stay_skips(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    result = run_with_conftest(pytester, test_skips=TESTS, test_module=MODULE)
    result.assert_outcomes(passed=1, skipped=3, xfailed=1)

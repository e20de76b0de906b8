"""Reads the JSON that pytest-benchmark wrote of the collected benchmarks (harness/contest.py, conftest.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from findings.model import AxisValue, Comparison, Entry, Findings, Key, Problem

RERUN = "write one with `make bench`, or with pytest's --benchmark-json over benchmarks/bench_*.py"
UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


class FindingsError(Exception):
    """A file that cannot be used; the message says which, why, and what to do."""


def read_findings(path: str | Path) -> Findings:
    """FindingsError where the file is missing, is none of the benchmarks', or holds no result."""
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise FindingsError(f"{path}: {error.strerror}; {RERUN}") from None
    except ValueError as error:
        raise FindingsError(f"{path}: no JSON ({error}); {RERUN}") from None
    try:
        findings = parse_findings(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FindingsError(f"{path}: not of umappy's benchmarks: {reason}; {RERUN}") from None
    if not any(comparison.entries for comparison in findings.comparisons):
        raise FindingsError(f"{path}: a run without results: every benchmark failed or was deselected; {RERUN}")
    return findings


def parse_findings(document: dict[str, Any]) -> Findings:
    """KeyError, TypeError, ValueError or AttributeError where the document is not what conftest.py writes."""
    machine = document["machine_info"]["umappy"]
    settings = document["umappy"]
    entries = [_parse_entry(benchmark) for benchmark in document["benchmarks"]]
    problems = [
        Problem(_parse_key(problem), problem["contender"], " ".join(problem["reason"].split()))
        for problem in settings["problems"]
    ]
    keys = dict.fromkeys([*(entry.key for entry in entries), *(problem.key for problem in problems)])
    comparisons = tuple(
        Comparison(
            key,
            tuple(entry for entry in entries if entry.key == key),
            tuple(problem for problem in problems if problem.key == key),
        )
        for key in keys
    )
    # A run that measured nothing has no settings.
    return Findings(
        comparisons, machine, settings.get("scale", {}), int(settings.get("rounds", 0)), settings.get("places", {})
    )


def _parse_key(what: dict[str, Any]) -> Key:
    axis = (_parse_axis(name, value) for name, value in what["axis"].items())
    return Key(what["subject"], what["device"], tuple(sorted(axis)))


def _parse_axis(name: str, value: AxisValue) -> tuple[str, AxisValue]:
    """Returns "size_gib", or "gib" alone, as "size" in bytes."""
    base, _, unit = name.rpartition("_")
    if unit in UNITS and not isinstance(value, str):
        return base or "size", value * UNITS[unit]
    return name, value


def _parse_entry(benchmark: dict[str, Any]) -> Entry:
    info = benchmark["extra_info"]
    entry = Entry(
        key=_parse_key(info),
        contender=info["contender"],
        seconds=tuple(benchmark["stats"]["data"]),
        cpu_seconds=tuple(info["cpu_seconds"]),
        peak_bytes=tuple(info["peak_bytes"]),
        device_bytes_read=tuple(info["device_bytes_read"]),
        device_bytes_written=tuple(info["device_bytes_written"]),
        values={name: tuple(values) for name, values in info["values"].items()},
        bytes=info["bytes"],
        items=info["items"],
        limit=info["limit"],
        cap=info["cap"],
        note=info["note"],
    )
    of_rounds = (
        entry.cpu_seconds, entry.peak_bytes, entry.device_bytes_read, entry.device_bytes_written, *entry.values.values()
    )  # fmt: skip
    if not entry.seconds or any(len(each) != len(entry.seconds) for each in of_rounds):
        raise ValueError(f"{benchmark['name']} does not have one of everything a round")
    return entry

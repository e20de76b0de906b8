"""Documents such as the collected benchmarks write, with the figures a test wants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MIB = 1 << 20
MACHINE = {
    "time": "2026-11-20T10:00:00+0000",
    "kernel": "6.18.1",
    "machine": "x86_64",
    "cores": 2,
    "load": [0.5, 0.25, 0.125],
    "python": "3.11.9",
    "numpy": "2.4.0",
    "commit": "abc1234",
    "environment": {},
    "versions": {"zarr": "3.1", "numpy": "2.4.0"},
    "cap": "cgroup",
}


def make_entry(
    subject: str,
    contender: str,
    seconds: Sequence[float],
    *,
    device: str | None = "fast",
    axis: Mapping[str, float | str] | None = None,
    bytes_of_work: int | None = 10**9,
    items: int | None = None,
    **changed: Any,
) -> dict[str, Any]:
    """A benchmark of the document. `changed`: of its extra_info."""
    count = len(seconds)
    info = {
        "subject": subject,
        "contender": contender,
        "device": device,
        "axis": dict(axis or {}),
        "note": None,
        "bytes": bytes_of_work,
        "items": items,
        "limit": 224 * MIB,
        "cap": "cgroup",
        "cpu_seconds": [0.5] * count,
        "peak_bytes": [100 * MIB] * count,
        "device_bytes_read": [2 * 10**9] * count,
        "device_bytes_written": [0] * count,
        "values": {},
    }
    return {"name": f"{subject}-{contender}", "extra_info": info | changed, "stats": {"data": list(seconds)}}


def make_problem(
    subject: str,
    contender: str,
    reason: str,
    *,
    device: str | None = "fast",
    axis: Mapping[str, float | str] | None = None,
) -> dict[str, Any]:
    what = {"subject": subject, "contender": contender, "device": device, "axis": dict(axis or {})}
    return what | {"reason": reason, "note": None}


def make_document(
    entries: Sequence[dict[str, Any]],
    problems: Sequence[dict[str, Any]] = (),
    *,
    machine: Mapping[str, Any] | None = None,
    scale: str = "quick",
) -> dict[str, Any]:
    """`machine`: what differs from MACHINE."""
    return {
        "machine_info": {"umappy": MACHINE | dict(machine or {})},
        "benchmarks": list(entries),
        "umappy": {
            "scale": {"name": scale, "size": 512 * MIB, "limit": 224 * MIB},
            "rounds": 3,
            "places": {"fast": {"read_ahead_kb": "128", "rotational": "0", "scheduler": None}},
            "problems": list(problems),
        },
    }


def write_document(path: Path, entries: Sequence[dict[str, Any]], *more: Any, **options: Any) -> Path:
    """Writes what `make_document` returns; returns `path`."""
    path.write_text(json.dumps(make_document(entries, *more, **options)))
    return path


def run_program(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of benchmarks/ as a user would."""
    return subprocess.run(
        [sys.executable, BENCHMARKS / name, *arguments],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS)} | environment,
        capture_output=True,
        text=True,
    )

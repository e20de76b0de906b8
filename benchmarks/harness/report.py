"""The table on stdout and the file of everything measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import umappy
from harness.result import Result
from umappy.cli.table import print_table

HEADER = ("row", "device", "against", "peer", "umappy", "ratio", "spread", "target", "")


def print_report(title: str, results: Sequence[Result]) -> None:
    """Prints one table, and below it what was noted."""
    print_table(title, HEADER, [format_row(result) for result in results])
    for result in results:
        notes = result.notes if result.problem is None else (*result.notes, f"{result.verdict}: {result.problem}")
        for note in notes:
            print(f"{result.row} ({result.place}): {note}")


def format_row(result: Result) -> list[str]:
    target, ratio = result.target, result.ratio
    show = target.format if target else "{:.3g}x".format
    return [
        result.row,
        result.place,
        result.against,
        result.peer,
        result.ours,
        "-" if ratio is None else show(ratio),
        f"{show(min(result.ratios))} to {show(max(result.ratios))}" if len(result.ratios) > 1 else "-",
        str(target) if target else "-",
        result.verdict,
    ]


def write_json(path: str, settings: dict[str, Any], devices: dict[str, Any], results: Sequence[Result]) -> None:
    """Writes every sample, and on what and how it was measured."""
    document = {
        "machine": describe_machine(),
        "devices": devices,
        "settings": settings,
        "results": [describe(result) for result in results],
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def describe(result: Result) -> dict[str, Any]:
    return {
        "row": result.row,
        "device": result.place,
        "against": result.against,
        "peer": result.peer,
        "umappy": result.ours,
        "ratio": result.ratio,
        "ratios": result.ratios,
        "target": str(result.target) if result.target else None,
        "verdict": result.verdict,
        "problem": str(result.problem) if result.problem else None,
        "notes": result.notes,
        "rounds": result.rounds,
    }


def describe_machine() -> dict[str, Any]:
    settings = {name: value for name, value in os.environ.items() if name.startswith("UMAPPY_")}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": find_processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "umappy": umappy.__file__,
        "commit": commit.stdout.strip() or None,
        "environment": settings,
    }


def find_processor() -> str | None:
    """Returns the model; None where the kernel does not tell."""
    with open("/proc/cpuinfo") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), None)

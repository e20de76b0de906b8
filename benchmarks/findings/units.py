"""Numbers as tables, plots and pages show them: three digits, and a unit."""

from __future__ import annotations

import math

from findings.model import AxisValue
from umappy.sizes import format_size, parse_size

GB = 1e9
NONE = "-"


def format_number(number: float) -> str:
    """Three digits, never an exponent."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    return f"{number:,.{max(0, min(9, 2 - math.floor(math.log10(abs(number)))))}f}"


def format_seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{format_number(seconds / factor)} {unit}"
    return f"{format_number(seconds / 1e-9)} ns"


def format_ratio(ratio: float) -> str:
    return f"{format_number(ratio)}x"


def format_spread(least: float, most: float) -> str:
    return f"{format_ratio(least)} to {format_ratio(most)}"


def describe_axis_name(name: str) -> str:
    return name.replace("_", " ")


def format_axis_value(name: str, value: AxisValue) -> str:
    if isinstance(value, str):
        return value
    if name == "oversubscription":
        return f"{value:g}x"
    if is_size(name) and value == int(value):
        return format_size(int(value))
    return f"{value:g}"


def is_size(name: str) -> bool:
    """Whether an axis of this name counts bytes."""
    return name.endswith(("size", "bytes", "memory", "region"))


def locate(value: AxisValue) -> float | None:
    """Returns where a value of an axis lies; None for one that is only a name."""
    if not isinstance(value, str):
        return float(value)
    try:
        return float(parse_size(value))
    except ValueError:
        return None

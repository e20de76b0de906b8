"""Sizes as people write and read them: `"4GiB"` to bytes and back.

KiB, MiB, GiB, TiB are powers of 1024 and kB, MB, GB, TB powers of 1000. A bare K, M, G or T means one to some readers
and the other to the rest, so it is refused with both spellings named, and so is any other case (`Kb`, `gib`).
"""

import operator
import re
from decimal import Decimal
from typing import SupportsIndex

BINARY_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
DECIMAL_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS = {"": 1, "B": 1, **BINARY_UNITS, **DECIMAL_UNITS}
# What the engine can count; every size that passes here fits its uint64_t and Python's Py_ssize_t.
SIZE_MAX = (1 << 63) - 1

_SIZE = re.compile(r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]*)\s*")


def parse_size(size: SupportsIndex | str, name: str = "size") -> int:
    """Returns the bytes that `size` means: an int, or a str such as "4GiB", "1.5 MB", "4096".

    `name` is what the messages call the value. TypeError for other types (bool and float too); ValueError for text
    that is no size, for a fraction of a byte, below zero, and from 2**63 up.
    """
    if isinstance(size, str):
        count = _parse_text(size, name)
    elif isinstance(size, bool):
        raise TypeError(f"{name} is {size!r}: wants bytes as an int or a str such as '4GiB'")
    else:
        try:
            count = operator.index(size)
        except TypeError:
            raise TypeError(f"{name} is {size!r}: wants bytes as an int or a str such as '4GiB'") from None
    if not 0 <= count <= SIZE_MAX:
        raise ValueError(f"{name} is {size!r}: wants at least 0 and less than 2**63 bytes")
    return count


def _parse_text(text: str, name: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{name} is {text!r}: wants a number of bytes and a unit, such as '4GiB' or '4096'")
    number, unit = match["number"], match["unit"]
    if unit not in UNITS:
        raise ValueError(f"{name} is {text!r}: {_explain_unit(number, unit)}")
    count = Decimal(number) * UNITS[unit]
    if count != int(count):
        raise ValueError(f"{name} is {text!r}: that is {count.normalize():f} bytes; wants a whole number")
    return int(count)


def _explain_unit(number: str, unit: str) -> str:
    initial = unit[0].upper()
    if unit.upper() in {initial, f"{initial}B", f"{initial}IB"} and initial in "KMGT":
        binary, decimal = f"{initial}iB", ("kB" if initial == "K" else f"{initial}B")
        return (
            f"write '{number}{binary}' ({BINARY_UNITS[binary]} bytes each) "
            f"or '{number}{decimal}' ({DECIMAL_UNITS[decimal]} bytes each)"
        )
    return f"no unit {unit!r}; there are B, {', '.join(BINARY_UNITS)} and {', '.join(DECIMAL_UNITS)}"


def format_size(count: int) -> str:
    """Returns `count` bytes for a person: "0 B", "256 MiB", "1.5 GiB". At most one decimal, so not exact."""
    if count < 0:
        raise ValueError(f"count is {count}: wants at least 0 bytes")
    value, unit = float(count), "B"
    for larger in BINARY_UNITS:
        if round(value, 1) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"

"""Figures of samples, and how they read."""

from __future__ import annotations

from harness.result import Side
from harness.rounds import Figure, Rounds
from harness.sample import Sample
from umappy.sizes import format_size


def seconds(sample: Sample) -> float:
    return sample.seconds


def value(name: str) -> Figure:
    """The figure `name` that the contender returned."""
    return lambda sample: sample.values[name]


def cpu_per_gb(size: int) -> Figure:
    """CPU seconds per GB (1e9 bytes) of `size` bytes."""
    return lambda sample: sample.cpu_seconds / (size / 1e9)


def rate_side(name: str, size: int) -> Side:
    """A contender by its bytes a second: `size` over the seconds it took."""
    return Side(name, lambda sample: size / sample.seconds, lambda rate: f"{rate / 1e9:.2f} GB/s")


def item_side(name: str, count: int) -> Side:
    """A contender by the time it took for each of `count` items."""
    return Side(name, lambda sample: sample.seconds / count, lambda each: f"{each * 1e6:.1f} us")


def seconds_side(name: str) -> Side:
    return Side(name, seconds, lambda took: f"{took:.2f} s")


def describe_costs(rounds: Rounds, *names: str) -> tuple[str, ...]:
    """What the last round of each contender cost besides time."""
    return tuple(f"{name}: {_describe(rounds.samples[name][-1])}" for name in names if rounds.samples.get(name))


def _describe(sample: Sample) -> str:
    parts = [f"CPU {sample.user_seconds:.2f} + {sample.system_seconds:.2f} s"]
    if sample.cgroup_peak_bytes is not None:
        parts.append(f"peak {format_size(sample.cgroup_peak_bytes)}")
    if sample.device_bytes_read is not None and sample.device_bytes_written is not None:
        parts.append(
            f"device read {format_size(sample.device_bytes_read)}, wrote {format_size(sample.device_bytes_written)}"
        )
    return ", ".join(parts)

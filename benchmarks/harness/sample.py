"""What one run of a contender took."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """One run. Seconds and the process's own counters are of what it measured; the rest is of its whole life."""

    seconds: float = 0.0
    user_seconds: float = 0.0
    """Of all its threads. A loop device works in threads of the kernel, which are nobody's."""
    system_seconds: float = 0.0
    bytes_read: int = 0
    """That the process made the kernel fetch from a device, as /proc/self/io tells."""
    bytes_written: int = 0
    device_bytes_read: int | None = None
    """By anybody; None where no device shows."""
    device_bytes_written: int | None = None
    cgroup_peak_bytes: int | None = None
    cap: str = "none"
    """What held it to its memory limit, see cap.py."""
    values: dict[str, float] = field(default_factory=dict)
    """What the contender returned."""

    @property
    def cpu_seconds(self) -> float:
        return self.user_seconds + self.system_seconds

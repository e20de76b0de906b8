"""Where a benchmark's files lie: the fast device, or the machine's own disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.number_file import NumberFile

SECTOR = 512


@dataclass(frozen=True)
class Place:
    """A folder on a device. `name` is "fast" or "disk"."""

    name: str
    folder: str
    _files: dict[int, NumberFile] = field(default_factory=dict)

    def numbers(self, size: int) -> NumberFile:
        """Returns the file of float64 of that size, written at first use; who changes it restores it."""
        if size not in self._files:
            numbers = NumberFile(os.path.join(self.folder, f"numbers-{size}"), size // 8)
            numbers.write()
            self._files[size] = numbers
        return self._files[size]

    def make_room(self, size: int) -> None:
        """Removes what lies here where fewer than `size` bytes are free. Who misses a file makes it again."""
        if shutil.disk_usage(self.folder).free >= size:
            return
        self._files.clear()
        for entry in list(os.scandir(self.folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)

    @contextlib.contextmanager
    def open_room(self, size: int) -> Iterator[Place]:
        """Makes a folder on the same device for `size` bytes, which goes away with the block."""
        self.make_room(size)
        with tempfile.TemporaryDirectory(prefix="room-", dir=self.folder) as folder:
            yield Place(self.name, folder)

    def count_bytes(self) -> tuple[int, int] | None:
        """Returns what the device has read and written so far, by anybody; None where no device shows."""
        text = self._read("stat")
        if text is None:
            return None
        fields = text.split()
        return SECTOR * int(fields[2]), SECTOR * int(fields[6])

    def describe(self) -> dict[str, str | None]:
        """Returns what of the device decides how the kernel reads ahead."""
        names = ("read_ahead_kb", "rotational", "scheduler")
        # Of a partition these are the whole disk's.
        return {name: self._read(f"queue/{name}") or self._read(f"../queue/{name}") for name in names}

    def _read(self, name: str) -> str | None:
        device = os.stat(self.folder).st_dev
        try:
            return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}", name).read_text().strip()
        except OSError:
            return None

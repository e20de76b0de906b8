"""Places to put files: with direct I/O for certain, or nearly full."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from umappy.stores import FileStore


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """mount(kind, size): a fresh file system of that size in its own folder; "tmpfs", or "ext4" on a loop device."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    undo: list[list[str]] = []

    def mount(kind: str, size: int, image: Path | None = None) -> Path:
        folder = tmp_path / f"mount{len(undo)}"
        folder.mkdir()
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
        else:
            image = image or tmp_path / f"image{len(undo)}"
            with image.open("wb") as file:
                file.truncate(size)
            run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
            device = run("losetup", "-f", "--show", str(image)).strip()
            undo.append(["losetup", "-d", device])
            run("mount", device, str(folder))
        undo.append(["umount", str(folder)])
        return folder

    yield mount
    for command in reversed(undo):
        run(*command)


@pytest.fixture
def direct_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder whose file system has direct I/O."""
    probe = tmp_path / "probe"
    with FileStore(probe, "w+", size=4096) as store:
        works = store.direct
    probe.unlink()
    return tmp_path if works else request.getfixturevalue("mount")("ext4", 64 << 20)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

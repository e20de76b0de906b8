"""A file system that stands for fast NVMe and repeats well: ext4 on a loop device with direct I/O over tmpfs (root)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEMORY_FOLDER = "/dev/shm"
# Everything written at once: a thread of the kernel that initialises tables later would disturb what is measured.
EXT4_OPTIONS = ("-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")

# The kernel's default. But a loop device that once lay over a file on a disk that says it rotates has kept the much
# larger one of such disks (2560 KiB), which makes np.memmap twenty times slower at random.
READ_AHEAD_KIB = 128


@contextlib.contextmanager
def open_fast_device(size: int) -> Iterator[str]:
    """Mounts a file system of `size` bytes, gives its folder, and takes it away again.

    OSError or subprocess.CalledProcessError where that cannot be done.
    """
    if os.geteuid() != 0:
        raise PermissionError("a loop device takes root; name a folder on a fast disk with --dir instead")
    base = tempfile.mkdtemp(prefix="umappy-fast-device-", dir=MEMORY_FOLDER)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base)
        image, folder = os.path.join(base, "image"), os.path.join(base, "mount")
        os.mkdir(folder)
        with open(image, "wb") as file:
            file.truncate(size)
            _run("mkfs.ext4", "-q", *EXT4_OPTIONS, image)
            # Or who first writes a block also pays for the memory behind. After mkfs, which punches holes.
            os.posix_fallocate(file.fileno(), 0, size)
        loop = _run("losetup", "--find", "--show", "--direct-io=on", image).strip()
        stack.callback(_run, "losetup", "--detach", loop)
        Path("/sys/block", os.path.basename(loop), "queue/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
        _run("mount", loop, folder)
        stack.callback(_run, "umount", folder)
        yield folder


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

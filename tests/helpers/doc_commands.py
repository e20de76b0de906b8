"""What a page of docs/ tells its readers to do, done: commands and programs of a section, in their order.

Blocks of ```console are shell commands, each line begins with "$ "; blocks of ```python are programs, which need not
import umappy.
Servers leave their process ids in files that end in ".pid"; they are ended at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 120


def list_blocks(text: str) -> list[tuple[str, str]]:
    """Pairs of "console" or "python" and what the block holds."""
    return [(match[1], match[2]) for match in BLOCK.finditer(text)]


def run_blocks(blocks: list[tuple[str, str]], folder: Path) -> None:
    """Runs them in a folder; AssertionError with what was said when one fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        for kind, content in blocks:
            if kind == "console":
                lines = content.splitlines()
                assert all(line.startswith("$ ") for line in lines), content
                command = ["bash", "-euc", "\n".join(line[2:] for line in lines)]
            else:
                command = [sys.executable, "-X", "dev", "-W", "error", "-c", f"import umappy\n{content}"]
            log = folder / "log"
            with log.open("w") as output:  # servers keep it open: no pipe that would have to end
                done = subprocess.run(
                    command, cwd=folder, env=environment, stdout=output, stderr=output, timeout=SECONDS
                )
            assert done.returncode == 0, f"{content}\n{log.read_text()}"
    finally:
        for path in folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)

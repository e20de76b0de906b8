"""The watchdog that every script here runs under ends what Python itself could not."""

import signal
import subprocess
from collections.abc import Callable

RunScript = Callable[..., subprocess.CompletedProcess[str]]


def test_script_that_hangs_in_a_fault_with_the_gil_is_ended_with_its_stacks(run_script: RunScript) -> None:
    done = run_script(
        """
store = DelayStore(FileStore(make_file(4)), 3600, op="read")
region = umappy.umap(store, page_size=4096, pager=umappy.Pager("1MiB"))
region[0]
""",
        seconds=2,
        check=False,
    )
    assert done.returncode == -signal.SIGALRM
    assert "most recent call first" in done.stderr
    assert "script.py" in done.stderr

"""mlockall: a region is neither populated nor locked by it, before or after it is mapped, and keeps to its budget."""

import subprocess
from collections.abc import Callable

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
FLAGS = {
    "FUTURE": MCL_FUTURE,
    "CURRENT|FUTURE": MCL_CURRENT | MCL_FUTURE,
    "FUTURE|ONFAULT": MCL_FUTURE | MCL_ONFAULT,
    "CURRENT|FUTURE|ONFAULT": MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT,
}

LOCK = """
import resource
PAGES = 4096
MEMORY = 4 << 20

def lock(flags):
    if libc.mlockall(flags):
        raise OSError(ctypes.get_errno(), "mlockall")

def use(region):
    "Reads and writes all of it; what is resident must never pass the budget."
    array = np.frombuffer(region, np.uint8)
    for round_ in range(2):
        for start in range(0, PAGES, 512):
            part = array[start * PAGE : (start + 512) * PAGE]
            assert (part[::PAGE] == 0xAB + round_).all()
            part += 1
            resident = read_smaps(region.address, len(region))[0]
            assert resident <= MEMORY, resident
    del array, part
    region.close()
    assert (np.fromfile("data", np.uint8) == 0xAB + 2).all()
"""


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_region_mapped_after_mlockall_is_not_populated_and_keeps_to_the_budget(
    run_script: RunScript, flags: int
) -> None:
    run_script(
        LOCK
        + f"""
make_file(PAGES)
lock({flags})
pager = umappy.Pager(MEMORY, fillers=2, evictors=1)
region = umappy.umap("data", mode="r+", page_size=4096, pager=pager)
assert read_smaps(region.address, len(region))[0] == 0
assert region.stats().fills == 0
use(region)
"""
    )


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_region_mapped_before_mlockall_keeps_to_the_budget(run_script: RunScript, flags: int) -> None:
    run_script(
        LOCK
        + f"""
make_file(PAGES)
pager = umappy.Pager(MEMORY, fillers=2, evictors=1)
region = umappy.umap("data", mode="r+", page_size=4096, pager=pager)
region[0]
lock({flags})
resident, mappings = read_smaps(region.address, len(region))
assert resident <= MEMORY, resident
use(region)
"""
    )


@pytest.mark.parametrize("flags", ["CURRENT|FUTURE", "CURRENT|FUTURE|ONFAULT"])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_chunks_are_read_and_moved_after_mlockall_as_before(run_script: RunScript, mode: str, flags: str) -> None:
    """Under a budget that is large enough for them; their own memory is not populated either."""
    run_script(
        LOCK
        + f"""
MEMORY = 64 << 20
with open("data", "wb") as file:
    file.truncate(3 * MEMORY)
pager = umappy.Pager(MEMORY)
region = umappy.umap("data", mode={mode!r}, page_size=4096, pager=pager)
array = np.frombuffer(region, np.int64)[:: PAGE // 8]
assert array[: len(array) // 3].max() == 0
before = pager.stats()
lock({FLAGS[flags]})
if region.mode == "r+":
    array += 1
total = int(array.sum())
assert total == (len(array) if region.mode == "r+" else 0), total
stats = pager.stats()
assert stats.readahead > before.readahead + len(array) // 2, stats
assert stats.peak_used <= MEMORY
resident = read_smaps(region.address, len(region))[0]
assert resident <= MEMORY, resident
"""
    )


def test_mappings_stay_few_when_a_locked_region_is_evicted(run_script: RunScript) -> None:
    """Unlocking page by page would cut the mapping into thousands, and the kernel allows 65,530 in all."""
    run_script(
        LOCK
        + """
make_file(PAGES)
region = umappy.umap("data", mode="r+", page_size=4096, pager=umappy.Pager(MEMORY, fillers=2, evictors=1))
lock(1 | 4)
array = np.frombuffer(region, np.uint8)
array[:: 2 * PAGE].max()
mappings = read_smaps(region.address, len(region))[1]
assert mappings < 10, mappings
"""
    )


def test_mlockall_of_the_caller_s_is_in_force_again_after_mapping(run_script: RunScript) -> None:
    run_script(
        LOCK
        + """
import mmap
make_file(PAGES)
lock(2)
umappy.umap("data", page_size=4096, pager=umappy.Pager(MEMORY)).close()
own = mmap.mmap(-1, 1 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(own))
assert read_smaps(address, len(own))[0] == len(own)
"""
    )


def test_eight_tebibytes_can_be_mapped_after_mlockall(run_script: RunScript) -> None:
    run_script(
        LOCK
        + """
lock(2)
with open("data", "wb") as file:
    file.truncate(8 << 40)
before = read_status("VmRSS")[0]
region = umappy.umap("data", mode="r+", page_size=4096, pager=umappy.Pager(MEMORY))
for place in (0, 1 << 42, (8 << 40) - 1):
    region[place] = 5
    assert region[place] == 5
assert read_status("VmRSS")[0] - before < 16 << 20  # thread stacks are locked, and populated
"""
    )


def test_region_that_the_lock_limit_forbids_is_refused_with_the_limit_s_errno(run_script: RunScript) -> None:
    """Without CAP_IPC_LOCK a process that locked its future may not map more than its limit, region or not."""
    run_script(
        LOCK
        + """
# What may be root's alone is opened before.
store, pager = FileStore(make_file(PAGES)), umappy.Pager(MEMORY)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
if os.geteuid() == 0:
    os.seteuid(65534)
lock(2)
for _ in range(2):
    try:
        umappy.umap(store, page_size=4096, pager=pager)
    except OSError as error:
        assert error.errno in (errno.EAGAIN, errno.ENOMEM), error
    else:
        raise AssertionError("16 MiB within a limit of 8 MiB")
assert pager.stats().regions == 0
libc.munlockall()
with umappy.umap(store, page_size=4096, pager=pager) as region:
    assert region[5] == 0xAB
"""
    )

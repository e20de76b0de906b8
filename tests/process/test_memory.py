"""Resident memory stays within the budget, page tables included, whoever asks: our own status, smaps, and a cgroup."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]
MakeCgroup = Callable[[int], Path]

# What is ours and is not counted: the touched parts of thread stacks (8 fillers, 2 evictors and a keeper, about 12 KiB
# each), malloc's arenas; and the kernel's own counter of resident pages is off by up to 64 pages a core.
SLACK = 2 << 20

# Neither are the upper page tables, and the tables and counters of the bookkeeping itself, which stay until the region
# is closed: per GiB of the range ever touched a PMD table, one for the words, 4 KiB of spans, 2 KiB of blocks.
UPPER_BYTES_PER_GIB = 14 << 10

# Before Linux 6.14 a page table stays when its range is dropped: 4 KiB for each 2 MiB ever touched.
KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])
TABLES_STAY = KERNEL < (6, 14)

BASELINE = (
    f"SLACK = {SLACK}\n"
    + """
def warm_up():
    "Whatever Python and numpy allocate at first use, so that it is no part of the difference."
    path = make_file(64, name="warm")
    with umappy.Pager("4MiB") as pager, umappy.umap(path, mode="r+", page_size=4096, pager=pager) as warm:
        view = np.frombuffer(warm, np.uint8)
        view[:: 64] += 1
        assert view.sum() > 0
        del view

def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")

def make_sparse(size, name="sparse"):
    with open(name, "wb") as file:
        file.truncate(size)
    return name
"""
)


# 64 MiB: enough for runs to be read into chunks.
@pytest.mark.parametrize(
    ("page_size", "memory", "times"),
    [
        (page_size, memory, times)
        for page_size, memory in [(4 << 10, 8 << 20), (64 << 10, 8 << 20), (2 << 20, 48 << 20)]
        for times in (4, 16)
    ]
    + [(4 << 10, 64 << 20, 4), (64 << 10, 64 << 20, 4)],
)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_peak_stays_within_the_budget(
    run_script: RunScript, mode: str, page_size: int, memory: int, times: int
) -> None:
    done = run_script(
        BASELINE
        + f"""
page_size, memory, size = {page_size}, {memory}, {memory * times}
warm_up()
pager = umappy.Pager(memory, fillers=2, evictors=1)
baseline = read_status("VmRSS")[0] - (pager.stats().used)
region = umappy.umap(make_sparse(size), mode={mode!r}, page_size=page_size, pager=pager)
array = np.frombuffer(region, np.uint8)
reset_peak()

def work(part):
    mine = array[part * 64 :: max(page_size // 2, 4096)]
    if region.mode == "r+":
        np.add(mine, 1, out=mine)
    else:
        mine.max()

threads = [threading.Thread(target=work, args=(part,)) for part in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
peak = read_status("VmHWM")[0] - baseline
stats = pager.stats()
assert stats.evictions >= ({times} - 1) * memory // page_size
assert peak <= memory + SLACK, f"{{peak / memory:.3f}} of the budget of {{memory >> 20}} MiB: {{stats}}"
assert stats.used <= stats.peak_used <= memory
print(f"{mode:2} pages of {{page_size >> 10:4}} KiB, {times:2} times a budget of {{memory >> 20}} MiB: "
      f"peak {{peak / 2**20:.1f}} MiB, counted {{stats.peak_used / 2**20:.1f}} MiB")
"""
    )
    print(done.stdout)


@pytest.mark.parametrize("page_size", [4 << 10, 64 << 10, 2 << 20])
def test_process_lives_in_a_cgroup_hardly_larger_than_the_budget(
    run_script: RunScript, make_cgroup: MakeCgroup, page_size: int
) -> None:
    """Page cache of the file goes by itself there; what is resident of ours, or of the kernel's tables, does not."""
    memory = 48 << 20
    done = run_script(
        BASELINE
        + f"""
warm_up()
pager = umappy.Pager({memory}, fillers=2, evictors=1)
region = umappy.umap(make_sparse(112 << 20), mode="r+", page_size={page_size}, pager=pager)
array = np.frombuffer(region, np.int64)
array[::512] = np.arange(len(array) // 512)
assert (array[::512] == np.arange(len(array) // 512)).all()
del array
region.close()
""",
        # Python and numpy alone take 35 MiB.
        cgroup=make_cgroup(memory + (56 << 20)),
    )
    print(done.stdout)


def test_page_tables_and_bookkeeping_are_part_of_the_budget(run_script: RunScript, make_cgroup: MakeCgroup) -> None:
    """One page each 2 MiB costs a page table and a page of words, 12 KiB in all: 384 MiB for these 64 GiB."""
    _touch_each_table(run_script, make_cgroup, size=64 << 30, memory=64 << 20, limit=128 << 20, seconds=50)


@pytest.mark.stress
def test_page_tables_and_bookkeeping_of_a_tebibyte_are_part_of_the_budget(
    run_script: RunScript, make_cgroup: MakeCgroup, stress_seconds: float
) -> None:
    """Half a million faults take half a minute; in the moments that `make test` has there is a part of them."""
    size = (1 << 40) if stress_seconds >= 60 else (16 << 30)
    _touch_each_table(run_script, make_cgroup, size=size, memory=256 << 20, limit=512 << 20, seconds=400)


def _touch_each_table(
    run_script: RunScript, make_cgroup: MakeCgroup, *, size: int, memory: int, limit: int, seconds: int
) -> None:
    staying = (size >> 30) * UPPER_BYTES_PER_GIB + (size // 512 if TABLES_STAY else 0)
    done = run_script(
        BASELINE
        + f"""
warm_up()
before = sum(read_status("VmRSS", "VmPTE"))
pager = umappy.Pager({memory})
region = umappy.umap(make_sparse({size}), page_size=4096, pager=pager, readahead=False)
array = np.frombuffer(region, np.uint8)
start = time.monotonic()
assert array[::2 << 20].max() == 0
took = time.monotonic() - start
stats, tables = pager.stats(), read_status("VmPTE")[0]
assert {size >> 21} <= stats.read_faults <= {(size >> 21) * 21 // 20}  # a reader held up finds its page gone
assert stats.peak_used <= {memory}
grown = sum(read_status("VmRSS", "VmPTE")) - before
assert grown <= stats.used + SLACK + {staying}, (grown, stats)
region.evict()
after, emptied = pager.stats(), read_status("VmPTE")[0]
assert after.resident == 0
assert emptied < SLACK + {staying}, emptied
print(f"{{stats.read_faults}} faults, {{took:.1f}} s, {{took / stats.read_faults * 1e6:.0f}} us each; "
      f"VmPTE {{tables >> 10}} KiB, after evict {{emptied >> 10}} KiB; "
      f"grown {{grown >> 10}} KiB, counted {{stats.used >> 10}} KiB")
""",
        cgroup=make_cgroup(limit + (size // 512 if TABLES_STAY else 0)),
        seconds=seconds,
    )
    print(done.stdout)


@pytest.mark.parametrize("page_size", [4 << 10, 64 << 10, 2 << 20])
def test_resident_is_what_the_kernel_says(run_script: RunScript, page_size: int) -> None:
    run_script(
        BASELINE
        + f"""
region = umappy.umap(make_sparse((64 << 20) + 5000), mode="r+", page_size={page_size},
                     pager=umappy.Pager("48MiB", fillers=2, evictors=1))
array = np.frombuffer(region, np.uint8)

def compare():
    deadline = time.monotonic() + 5
    while True:  # an evictor may be at work
        told = [region.stats().resident, *read_smaps(region.address, len(region) + 4096)]
        if told[0] == told[1] or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert told[0] == told[1], told
    return told[0]

assert compare() == 0
array[::4096].max()
assert compare() + region.stats().standby > 16 << 20
array[::3 * 4096] = 1
assert compare() + region.stats().standby > 16 << 20
region.flush()
region.evict(slice(0, 32 << 20))
compare()
region.evict()
assert compare() == 0
"""
    )


@pytest.mark.parametrize("readahead", [False, True])
@pytest.mark.parametrize("mechanism", ["copy", "move"])
def test_used_is_what_the_process_grew_by(run_script: RunScript, mechanism: str, readahead: bool) -> None:
    """Not less, but for the slack: that would break the budget. Nor much more: that would waste it."""
    run_script(
        BASELINE
        + f"READAHEAD, MECHANISM = {readahead}, {mechanism!r}\n"
        + """
warm_up()
before = sum(read_status("VmRSS", "VmPTE"))
region = umappy.umap(make_sparse(1 << 30), mode="r+", page_size=4096, readahead=READAHEAD,
                     pager=umappy.Pager("128MiB", mechanism=MECHANISM))
array = np.frombuffer(region, np.uint8)

def measure():
    "What is being read ahead is counted from before its memory is there."
    deadline = time.monotonic() + 5
    while True:
        used = region.pager.stats().used
        grown = sum(read_status("VmRSS", "VmPTE")) - before
        if used - (2 << 20) <= grown <= used + SLACK or time.monotonic() > deadline:
            return used, grown
        time.sleep(0.01)

for step in (4096, 32 << 10, 2 << 20):
    region.evict()
    array[: 8192 * step : step] += 1
    used, grown = measure()
    print(f"a page each {step >> 10} KiB: {grown >> 10} KiB, counted {used >> 10} KiB")
    assert used - (2 << 20) <= grown <= used + SLACK, (step, grown, used)
"""
    )


def test_region_of_eight_tebibytes_is_mapped_in_no_time_and_next_to_no_memory(run_script: RunScript) -> None:
    done = run_script(
        BASELINE
        + """
warm_up()
TIB = 1 << 40
name = make_sparse(8 * TIB)
pager = umappy.Pager("8MiB")
before = sum(read_status("VmRSS", "VmPTE"))
start = time.monotonic()
region = umappy.umap(name, mode="r+", page_size=4096, pager=pager)
took = time.monotonic() - start
grown = sum(read_status("VmRSS", "VmPTE")) - before
places = [0, 5, TIB - 1, TIB, 3 * TIB + 123456789, 8 * TIB - 1]
for value, place in enumerate(places, 1):
    region[place] = value
region.evict()
assert [region[place] for place in places] == list(range(1, len(places) + 1))
start = time.monotonic()
region.close()
closed = time.monotonic() - start
with open(name, "rb") as file:
    for value, place in enumerate(places, 1):
        file.seek(place)
        assert file.read(1) == bytes([value])
assert os.stat(name).st_blocks * 512 <= 1 << 20
print(f"mapped in {took * 1000:.1f} ms and {grown >> 10} KiB, closed in {closed * 1000:.1f} ms")
assert took < 0.25 and grown < 4 << 20 and closed < 5, (took, grown, closed)
"""
    )
    print(done.stdout)


def test_region_that_no_address_space_is_left_for_is_refused_and_leaves_nothing_behind(run_script: RunScript) -> None:
    run_script(
        BASELINE
        + """
import resource

name = make_sparse(1 << 40)
pager = umappy.Pager("8MiB")
taken = read_status("VmSize")[0]
# From "not even the mapping" to "the mapping, but not all of the bookkeeping".
for spare in (1 << 30, (1 << 40) + (1 << 20), (1 << 40) + (1 << 30)):
    resource.setrlimit(resource.RLIMIT_AS, (taken + spare, resource.RLIM_INFINITY))
    fds = len(os.listdir("/proc/self/fd"))
    try:
        umappy.umap(name, page_size=4096, pager=pager)
    except (OSError, MemoryError) as error:
        assert isinstance(error, MemoryError) or error.errno == errno.ENOMEM, error
    else:
        raise AssertionError(spare)
    gc.collect()
    assert pager.stats().regions == 0
    assert read_status("VmSize")[0] <= taken + (1 << 20)
    assert len(os.listdir("/proc/self/fd")) == fds
with umappy.umap(name, 1 << 29, page_size=4096, pager=pager) as region:
    assert region[(1 << 29) - 1] == 0
"""
    )

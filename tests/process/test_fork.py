"""Forked children: what they see of the parent's regions, what they can do themselves, and that they do no harm."""

import subprocess
from collections.abc import Callable

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

# Each ends the child by a signal or an exception, whatever state the page is in; none may come back with bytes.
TOUCHES = {
    "index": "region[offset]",
    "slice": "region[offset:offset + 10]",
    "array": "array[offset]",
    "array reduction": "array.sum()",
    "array copy": "array.copy()",
    "string_at": "ctypes.string_at(region.address + offset, 10)",
    "write": "array.__setitem__(offset, 1)",
    "write by memset": "ctypes.memset(region.address + offset, 0, 10)",
}

FORKS = {
    "os.fork": "in_child(touch)",
    "multiprocessing": "in_process(touch)",
    "preexec_fn": "in_subprocess(touch)",
    "C": "in_c_child(touch)",
}

MAP = """
region = umappy.umap(make_file(64), mode="r+", page_size=4096, pager=umappy.Pager("1MiB"))
array = np.frombuffer(region, np.uint8)
ABSENT, CLEAN, DIRTY = 0, 20 * PAGE, 40 * PAGE
array[DIRTY] = 1
assert array[CLEAN] == 0xAB
assert list(region.residency(0, 41 * PAGE)[[0, 20, 40]]) == [0, 1, 2]
"""


@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_child_that_touches_a_region_is_killed_and_reads_nothing(run_script: RunScript, fork: str) -> None:
    run_script(
        MAP
        + f"""
import multiprocessing

def in_process(work):
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode

def in_subprocess(work):
    return subprocess.call(["true"], preexec_fn=work)  # between fork and exec

python_api = ctypes.PyDLL(None)  # keeps the GIL: the child goes on with it

def in_c_child(work):
    pid = python_api.fork()
    if pid == 0:
        signal.alarm(20)
        work()
        os._exit(0)
    return wait(pid)

for name, code in {TOUCHES!r}.items():
    for offset in (ABSENT, CLEAN, DIRTY):
        def touch():
            found = eval(code)
            os.write(2, f"{{name}} at {{offset}} gave {{found}}\\n".encode())
        result = {fork}
        assert result == -signal.SIGSEGV, (name, offset, result)
assert array[ABSENT] == 0xAB and array[DIRTY] == 1
"""
    )


def test_child_that_hands_a_region_to_a_system_call_gets_efault(run_script: RunScript) -> None:
    run_script(
        MAP
        + """
def work():
    read_end, write_end = os.pipe()
    for offset in (ABSENT, CLEAN, DIRTY):
        try:
            os.write(write_end, memoryview(region)[offset:offset + 10])
        except OSError as error:
            assert error.errno == errno.EFAULT
        else:
            raise AssertionError("bytes of an inherited region")

assert in_child(work) == 0
"""
    )


def test_methods_in_a_child_raise_forked_region_error(run_script: RunScript) -> None:
    run_script(
        MAP
        + """
METHODS = {
    "flush": lambda: region.flush(),
    "evict": lambda: region.evict(),
    "prefetch": lambda: region.prefetch(),
    "overwrite": lambda: region.overwrite(0, b"x"),
    "residency": lambda: region.residency(),
    "stats": lambda: region.stats(),
    "check": lambda: region.check(),
    "errors": lambda: region.errors,
    "retry": lambda: region.retry(),
    "madvise": lambda: region.madvise(4),
    "pager.stats": lambda: region.pager.stats(),
    "pager.reserved": lambda: region.pager.reserved(4096).__enter__(),
    "umap": lambda: umappy.umap(FileStore("other", "w+", size=PAGE), pager=region.pager),
}

def work():
    for name, method in METHODS.items():
        try:
            method()
        except umappy.ForkedRegionError as error:
            assert str(os.getpid()) in str(error)
        else:
            raise AssertionError(name)
    repr(region), repr(region.pager), region.mode, region.page_size, len(region), region.size()

assert in_child(work) == 0
"""
    )


@pytest.mark.parametrize(
    "end",
    [
        "os._exit(0)",
        "sys.exit(0)",
        "del array; region.close(); region.close(); assert region.closed; region.pager.close(); sys.exit(0)",
        "del array, region; gc.collect(); sys.exit(0)",
        "keep_for_ever = [region]; keep_for_ever.append(keep_for_ever); sys.exit(0)",
    ],
)
def test_child_that_ends_leaves_the_parent_its_data_and_its_lock(run_script: RunScript, end: str) -> None:
    run_script(
        MAP
        + f"""
array[1::2] = 7
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        {end}
    assert wait(pid) == 0
    assert (array[1::2] == 7).all() and array[DIRTY] == 1
    array[DIRTY + 2] += 1
try:
    subprocess.run([sys.executable, "-c", "from umappy import FileStore; FileStore('data', 'r+')"],
                   check=True, capture_output=True, text=True)
except subprocess.CalledProcessError as error:
    assert "StoreLockedError" in error.stderr, error.stderr
else:
    raise AssertionError("the writer's lock is gone")
del array
region.close()
data = np.fromfile("data", np.uint8)
assert (data[1::2] == 7).all() and data[DIRTY] == 1 and data[DIRTY + 2] == (0xAB + 10) % 256
"""
    )


def test_child_that_survives_the_region_does_not_keep_the_lock(run_script: RunScript) -> None:
    run_script(
        MAP
        + """
pid = os.fork()
if pid == 0:
    signal.alarm(40)
    signal.pause()
del array
region.close()
FileStore("data", "r+").close()
os.kill(pid, signal.SIGKILL)
assert wait(pid) == -signal.SIGKILL
"""
    )


def test_child_that_survives_a_killed_parent_does_not_keep_the_lock(run_script: RunScript) -> None:
    run_script(
        """
parent = subprocess.Popen([sys.executable, "-c", '''
import os, signal, umappy
region = umappy.umap("data", mode="r+", pager=umappy.Pager("4MiB"))
region[0] = 1
if os.fork() == 0:
    signal.alarm(40)
    print(os.getpid(), flush=True)  # now it has let go of the file
    signal.pause()
signal.pause()
'''], stdout=subprocess.PIPE, text=True) if make_file(64) else None
child = int(parent.stdout.readline())
try:
    FileStore("data", "r+")
except umappy.StoreLockedError:
    pass
else:
    raise AssertionError("not locked while the parent lives")
parent.kill()
parent.wait()
parent.stdout.close()
os.kill(child, 0)
FileStore("data", "r+").close()
os.kill(child, signal.SIGKILL)
"""
    )


def test_child_has_none_of_the_engine_s_descriptors_of_a_region(run_script: RunScript) -> None:
    run_script(
        MAP
        + """
def list_engine():
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.islink(f"/proc/self/fd/{fd}")]
    return [name for name in names if "userfaultfd" in name or name.endswith("/data")]

def work():
    assert not list_engine(), list_engine()

assert len(list_engine()) >= 2
assert in_child(work) == 0
"""
    )


def test_program_started_has_none_of_the_engine_s_descriptors(run_script: RunScript) -> None:
    run_script(
        MAP
        + """
listing = subprocess.run(["ls", "-l", "/proc/self/fd"], check=True, capture_output=True, text=True, close_fds=False)
assert "/proc/" in listing.stdout and "anon_inode" not in listing.stdout and "data" not in listing.stdout
assert array[ABSENT] == 0xAB
"""
    )


CHILD_S_OWN = """
def use_own(name):
    make_file(64, 0x11, name)
    with umappy.Pager("1MiB") as pager, umappy.umap(name, mode="r+", page_size=4096, pager=pager) as own:
        view = np.frombuffer(own, np.uint8)
        assert (view == 0x11).all()
        view[:] = 0x22
        del view
    assert Path(name).read_bytes() == b"\\x22" * (64 * PAGE)
"""


def test_child_can_use_pagers_and_regions_of_its_own(run_script: RunScript) -> None:
    run_script(
        MAP
        + CHILD_S_OWN
        + """
for round_ in range(3):
    assert in_child(lambda: use_own(f"own-{round_}")) == 0
assert (array[CLEAN + 1:] == 0xAB).sum() == len(array) - CLEAN - 2
"""
    )


def test_child_can_use_a_default_pager_of_its_own(run_script: RunScript) -> None:
    run_script(
        """
umappy.config.memory = "8MiB"
first = umappy.umap(make_file(64))
assert first[5] == 0xAB

def work():
    umappy.config.memory = "16MiB"  # the parent's pager froze the settings there, not here
    own = umappy.umap("data")
    assert own[5] == 0xAB and own.pager is not first.pager and own.pager.memory == 16 << 20
    own.close()

assert in_child(work) == 0
assert first[50] == 0xAB
"""
    )


def test_child_is_told_of_failures_of_its_own_region(run_script: RunScript) -> None:
    run_script(
        MAP
        + """
def work():
    store = ErrorStore(FileStore("data"), errno=errno.EACCES)
    own = umappy.umap(store, page_size=4096, pager=umappy.Pager("1MiB"))
    caught = None
    try:
        for _ in range(1000):
            own[0]
            time.sleep(0.01)  # the exception comes from a thread that the child had to start anew
    except umappy.StoreError as error:
        caught = error
    assert caught is not None and caught.errno == errno.EACCES

assert in_child(work) == 0
"""
    )


def test_child_s_own_region_is_flushed_when_the_child_exits(run_script: RunScript) -> None:
    run_script(
        MAP
        + """
make_file(64, 0x11, "own")
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    own = np.frombuffer(umappy.umap("own", mode="r+", pager=umappy.Pager("4MiB")), np.uint8)
    own[:] = 0x22
    sys.exit(0)
assert wait(pid) == 0
assert Path("own").read_bytes() == b"\\x22" * (64 * PAGE)
"""
    )


def test_child_of_a_child_sees_neither_s_regions_and_can_use_its_own(run_script: RunScript) -> None:
    run_script(
        MAP
        + CHILD_S_OWN
        + """
def child():
    use_own("own-child")
    make_file(64, 0x11, "held")
    held = umappy.umap("held", mode="r+", page_size=4096, pager=umappy.Pager("1MiB"))
    held[0] = 0x33

    def grandchild():
        use_own("own-grandchild")
        for call in (held.stats, region.stats):
            try:
                call()
            except umappy.ForkedRegionError:
                continue
            raise AssertionError("a method of an inherited region worked")

    assert in_child(grandchild) == 0
    for inherited in (held, region):
        for offset in (0, CLEAN):
            assert in_child(lambda: print("read", inherited[offset])) == -signal.SIGSEGV
    assert held[0] == 0x33 and held[PAGE] == 0x11
    held.close()
    assert Path("held").read_bytes()[:2] == b"\\x33\\x11"

assert in_child(child, seconds=40) == 0
assert array[ABSENT] == 0xAB and array[DIRTY] == 1
"""
    )


def test_fork_while_another_thread_waits_in_a_fault_leaves_both_going(run_script: RunScript) -> None:
    run_script(
        CHILD_S_OWN
        + """
store = DelayStore(FileStore(make_file(64)), 0.5, op="read")
region = umappy.umap(store, page_size=4096, pager=umappy.Pager("1MiB"))
array = np.frombuffer(region, np.uint8)
total = []
thread = threading.Thread(target=lambda: total.append(int(array[: 2 * PAGE].sum())))  # without the GIL
thread.start()
while not region.stats().read_faults:
    time.sleep(0.01)
assert in_child(lambda: use_own("own")) == 0
assert in_child(lambda: print(array[5])) == -signal.SIGSEGV
thread.join()
assert total == [2 * PAGE * 0xAB]
"""
    )


def test_forks_amid_faults_flushes_evictions_opens_and_closes_harm_nobody(run_script: RunScript) -> None:
    run_script(
        CHILD_S_OWN
        + """
PAGES = 256
pager = umappy.Pager("1MiB", fillers=2, evictors=1)
make_file(PAGES, 0)
region = umappy.umap("data", mode="r+", page_size=4096, pager=pager)
words = np.frombuffer(region, np.int64)
expected = np.zeros_like(words)
stop, failures = threading.Event(), []

def loop(work):
    def run():
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            failures.append(error)
    return threading.Thread(target=run)

def add(t):
    np.add(words[t::3], 1, out=words[t::3])
    np.add(expected[t::3], 1, out=expected[t::3])

def churn():
    region.flush()
    start = random.randrange(PAGES) * PAGE
    region.evict(slice(start, start + 16 * PAGE))
    region.prefetch(slice(start, start + 8 * PAGE))

def reopen(name):
    with umappy.umap(name, mode="r+", page_size=4096, pager=pager) as other:
        assert other[5 * PAGE] == 0x55

opened = [make_file(16, 0x55, f"opened-{i}") for i in range(3)]
threads = [loop(lambda t=t: add(t)) for t in range(3)] + [loop(churn)] + [loop(lambda o=o: reopen(o)) for o in opened]
for thread in threads:
    thread.start()
deadline = time.monotonic() + 4
rounds = 0
while time.monotonic() < deadline:
    rounds += 1
    kind = rounds % 4
    if kind == 0:
        assert in_child(lambda: use_own("own")) == 0
    elif kind == 1:
        assert in_child(lambda: print(words[random.randrange(len(words))])) == -signal.SIGSEGV
    elif kind == 2:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            stop.set()
            sys.exit(0)
        assert wait(pid) == 0
    else:
        subprocess.run(["true"], check=True, preexec_fn=lambda: None)
stop.set()
for thread in threads:
    thread.join()
assert not failures, failures
assert rounds >= 20, rounds
assert (words == expected).all()
del words
region.close()
assert (np.fromfile("data", np.int64) == expected).all()
print(rounds, "forks")
"""
    )

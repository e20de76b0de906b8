"""Eviction policies: the simulator against the engine's own code, what each policy is for, and their parameters."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umappy._simulate.pager import IdealPager
from umappy._simulate.queues import AHEAD
from umappy.eviction import (
    POLICIES,
    Auto,
    Fifo,
    Mru,
    Policy,
    S3Fifo,
    SecondChance,
    Simulation,
    WaterMarks,
    read_policy,
    simulate,
)

ROOT = Path(__file__).parent.parent
PAGE = 4096
REFERENCE = np.dtype([("page", "<u8"), ("count", "<u4"), ("region", "<u2"), ("flags", "<u2")])
READ_AHEAD = 1

Replay = Callable[..., list[int]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/engine/test_policy.c with nothing of the engine but its policies."""
    path = tmp_path_factory.mktemp("replay") / "replay"
    engine, tests = ROOT / "umappy/engine", ROOT / "tests/engine"
    sources = [*engine.glob("policy*.c"), engine / "memory.c", tests / "replay.c", tests / "test_policy.c"]
    command = ["gcc", "-std=gnu11", "-O1", "-pthread", f"-I{engine}", f"-I{tests}", *sources, "-o", path]
    subprocess.run(command, check=True, timeout=50)
    return path


@pytest.fixture(scope="session")
def replay(program: Path) -> Replay:
    """replay(references, policy, memory, page_shift): the engine's policies over the same references."""

    def run(
        references: np.ndarray,
        policy: Policy,
        memory: int,
        page_shift: int = 12,
        standby: bool = True,
        standby_run: int = 0,
    ) -> list[int]:
        path = program.with_name("references")
        references.tofile(path)
        shares = policy.shares()
        arguments = [policy.kind, memory, page_shift, shares.small, shares.standby if standby else 0, shares.ghosts]
        arguments.append(standby_run)
        done = subprocess.run([program, path, *map(str, arguments)], check=True, capture_output=True, timeout=50)
        return [int(word) for word in done.stdout.split()]

    return run


def run_simulator(
    references: np.ndarray,
    policy: Policy,
    memory: int,
    page_shift: int = 12,
    standby: bool = True,
    standby_run: int = 0,
) -> IdealPager:
    state = policy.start(memory, standby=standby, standby_run=standby_run)
    pager = IdealPager(state, memory, dict.fromkeys(range(16), 1 << page_shift))
    ends = {
        int(r): int(references["page"][references["region"] == r].max()) + 1 for r in np.unique(references["region"])
    }
    for page, count, region, flags in references.tolist():
        pager.touch_run(region, page, count, ends[region], is_prefetched=bool(flags & READ_AHEAD))
    return pager


def make_references(pages: np.ndarray, **fields: object) -> np.ndarray:
    references = np.zeros(len(pages), REFERENCE)
    references["page"], references["count"] = pages, 1
    for name, value in fields.items():
        references[name] = value
    return references


def draw_zipf(random: np.random.Generator, items: int, exponent: float, count: int) -> np.ndarray:
    """Ranks from 0 of `items` items, by the inverse of their distribution."""
    total = np.cumsum(np.arange(1.0, items + 1) ** -exponent)
    return np.searchsorted(total / total[-1], random.random(count))


def make_mixture(seed: int) -> np.ndarray:
    """Zipf, a loop, a scan, small and large runs, two regions, read-ahead."""
    random = np.random.default_rng(seed)
    zipf = make_references(random.permutation(3000)[draw_zipf(random, 3000, 1.0, 8000)])
    loop = make_references(np.tile(np.arange(700), 6), region=1)
    scan = make_references(np.arange(0, 4000, 16) + 5000, count=16)
    ahead = make_references(np.arange(0, 4000, 16) + 5016, count=16, flags=READ_AHEAD)
    stream = np.stack([ahead, scan], axis=1).ravel()
    runs = make_references(random.integers(0, 3000, 2000), count=random.integers(1, 65, 2000))
    return np.concatenate([zipf, loop, stream, runs, zipf[::-1]])


@pytest.mark.parametrize("standby", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_simulator_evicts_what_the_engine_does(name: str, standby: bool, replay: Replay) -> None:
    references, policy, memory = make_mixture(1), read_policy(name), 400 * PAGE
    pager = run_simulator(references, policy, memory, standby=standby)
    _, misses, _, refaults, prefetched, digest = replay(references, policy, memory, standby=standby)
    assert (pager.misses, pager.refaults, pager.prefetched) == (misses, refaults, prefetched)
    assert pager.digest == digest


@pytest.mark.parametrize("name", POLICIES)
def test_simulator_where_small_runs_cannot_wait_evicts_what_the_engine_does(name: str, replay: Replay) -> None:
    references, policy, memory = make_mixture(3), read_policy(name), 400 * PAGE
    pager = run_simulator(references, policy, memory, standby_run=16 * PAGE)
    _, misses, _, refaults, _, digest = replay(references, policy, memory, 12, True, 16 * PAGE)
    assert (pager.misses, pager.refaults, pager.digest) == (misses, refaults, digest)
    assert refaults > 0


@pytest.mark.parametrize("policy", [S3Fifo(small=0.3, standby=0.05, ghosts=3.0), SecondChance(0.6), Auto(ghosts=0.1)])
def test_simulator_with_other_parameters_and_pages_evicts_what_the_engine_does(policy: Policy, replay: Replay) -> None:
    references, memory = make_mixture(2), 150 * 65536
    pager = run_simulator(references, policy, memory, 16)
    _, misses, _, refaults, _, digest = replay(references, policy, memory, 16)
    assert (pager.misses, pager.refaults, pager.digest) == (misses, refaults, digest)


@pytest.mark.parametrize("name", POLICIES)
def test_defaults_are_those_of_the_engine(name: str, program: Path) -> None:
    kind, shares = POLICIES[name].kind, POLICIES[name]().shares()
    done = subprocess.run([program, str(kind)], check=True, capture_output=True, timeout=50)
    assert [int(word) for word in done.stdout.split()] == [shares.small, shares.standby, shares.ghosts]


# What each policy is for. In the engine's code, which the simulator was just found equal to, as it is faster.
CAPACITY = 2000


def count_misses(replay: Replay, pages: np.ndarray, name: str, standby: bool = True) -> tuple[float, float]:
    """Misses a reference, in all and in the second half."""
    references, misses, late, *_ = replay(make_references(pages), read_policy(name), CAPACITY * PAGE, 12, standby)
    return misses / references, 2 * late / references


@pytest.fixture(scope="module")
def zipf_items() -> np.ndarray:
    """zipf(1.1) reads of 8-byte items, ranks shuffled over the pages of data ten times the memory."""
    random = np.random.default_rng(1)
    items = 10 * CAPACITY * PAGE // 8
    page_of_rank = random.integers(0, 10 * CAPACITY, items, np.int32)
    return page_of_rank[draw_zipf(random, items, 1.1, 1_500_000)]


def test_auto_on_zipf_misses_a_quarter_less_than_fifo(zipf_items: np.ndarray, replay: Replay) -> None:
    _, fifo = count_misses(replay, zipf_items, "fifo")
    _, auto = count_misses(replay, zipf_items, "auto")
    assert auto <= 0.75 * fifo


def test_s3fifo_on_zipf_misses_less_than_fifo(zipf_items: np.ndarray, replay: Replay) -> None:
    assert count_misses(replay, zipf_items, "s3fifo")[1] <= 0.87 * count_misses(replay, zipf_items, "fifo")[1]


def test_auto_on_zipf_where_pages_cannot_wait_misses_less_than_fifo(zipf_items: np.ndarray, replay: Replay) -> None:
    done = replay(make_references(zipf_items), Auto(), CAPACITY * PAGE, 12, True, 2 << 20)
    assert done[2] / len(zipf_items) * 2 <= 0.87 * count_misses(replay, zipf_items, "fifo")[1]


def test_auto_without_standby_on_zipf_misses_less_than_fifo(zipf_items: np.ndarray, replay: Replay) -> None:
    auto = count_misses(replay, zipf_items, "auto", standby=False)[1]
    assert auto <= 0.87 * count_misses(replay, zipf_items, "fifo")[1]


def test_loop_over_twice_the_memory_hits_with_auto_and_mru_alone(replay: Replay) -> None:
    pages = np.tile(np.arange(2 * CAPACITY), 10)
    assert count_misses(replay, pages, "fifo")[0] == 1.0
    assert count_misses(replay, pages, "mru")[1] <= 0.51
    in_all, late = count_misses(replay, pages, "auto")
    assert in_all <= 0.65
    assert late <= 0.58


@pytest.mark.parametrize("times", [1.2, 3, 6])
def test_auto_on_loops_hits_most_of_what_could_be_held(times: float, replay: Replay) -> None:
    pages = np.tile(np.arange(int(times * CAPACITY)), 10)
    assert 1 - count_misses(replay, pages, "auto")[1] >= 0.8 / times


def test_auto_after_a_loop_lets_go(replay: Replay) -> None:
    random = np.random.default_rng(2)
    loop = np.tile(np.arange(2 * CAPACITY), 10)
    after = 5 * CAPACITY + draw_zipf(random, CAPACITY, 0.7, 200_000)
    alone, _ = count_misses(replay, after, "auto")
    both, _ = count_misses(replay, np.concatenate([loop, after]), "auto")
    extra = both * (len(loop) + len(after)) - count_misses(replay, loop, "auto")[0] * len(loop) - alone * len(after)
    assert extra <= 5 * CAPACITY


@pytest.mark.parametrize("name", ["s3fifo", "auto"])
def test_one_scan_leaves_the_hot_set_in_memory(name: str, replay: Replay) -> None:
    random = np.random.default_rng(3)
    before, after = np.split(random.permutation(3 * CAPACITY)[draw_zipf(random, 3 * CAPACITY, 1.1, 240_000)], [200_000])
    scan = 5 * CAPACITY + np.arange(5 * CAPACITY)

    def count_lost(policy: str) -> float:
        """Misses after the scan that there are only because of it."""
        parts = [before, scan, after]
        with_scan = count_misses(replay, np.concatenate(parts), policy)[0] * sum(map(len, parts)) - len(scan)
        return with_scan - count_misses(replay, np.concatenate([before, after]), policy)[0] * len(
            np.concatenate([before, after])
        )

    assert count_lost(name) <= 0.4 * count_lost("fifo")


@pytest.mark.parametrize("pattern", ["uniform", "uniform small", "scan", "mixed", "moving"])
@pytest.mark.parametrize("standby", [True, False])
def test_auto_is_hardly_worse_than_fifo(pattern: str, standby: bool, replay: Replay) -> None:
    random = np.random.default_rng(4)
    pages = {
        "uniform": lambda: random.integers(0, 10 * CAPACITY, 200_000),
        "uniform small": lambda: random.integers(0, CAPACITY * 6 // 5, 100_000),
        "scan": lambda: np.arange(100_000),
        "mixed": lambda: np.where(
            random.random(200_000) < 0.3, 5 * CAPACITY + np.arange(200_000), draw_zipf(random, CAPACITY, 0.9, 200_000)
        ),
        "moving": lambda: (draw_zipf(random, 3 * CAPACITY, 0.9, 200_000) + np.arange(200_000) // 50) % (10 * CAPACITY),
    }[pattern]()
    assert count_misses(replay, pages, "auto", standby)[0] <= 1.03 * count_misses(replay, pages, "fifo")[0]


def make_stream(chunks: int, length: int = 16) -> np.ndarray:
    """A sequential reader, and read-ahead by chunks, two of them ahead of it."""
    parts = []
    for chunk in range(chunks):
        if chunk + 2 < chunks:
            parts.append(make_references(np.array([(chunk + 2) * length]), count=length, flags=READ_AHEAD))
        parts.append(make_references(np.arange(chunk * length, (chunk + 1) * length)))
    return np.concatenate(parts)


@pytest.mark.parametrize("standby", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_stream_finds_what_was_read_ahead(name: str, standby: bool, replay: Replay) -> None:
    references = make_stream(400)
    _, misses, _, refaults, *_ = replay(references, read_policy(name), 600 * PAGE, 12, standby)
    assert misses == 2 * 16
    assert refaults == 398


@pytest.mark.parametrize("name", POLICIES)
def test_read_ahead_nobody_wanted_leaves(name: str, replay: Replay) -> None:
    wrong = make_references(np.arange(100, 140), flags=READ_AHEAD)
    between = make_references(np.tile(np.arange(10_000, 10_700), 3))
    references = np.concatenate([wrong, between, make_references(np.arange(100, 140))])
    _, misses, *_ = replay(references, read_policy(name), 600 * PAGE)
    _, misses_before, *_ = replay(np.concatenate([wrong, between]), read_policy(name), 600 * PAGE)
    assert misses - misses_before == 40


def test_auto_keeps_the_hot_set_beside_a_stream(replay: Replay) -> None:
    random = np.random.default_rng(6)
    stream = make_stream(4000)
    hot = make_references(draw_zipf(random, CAPACITY, 0.9, len(stream)), region=1)
    references = np.stack([stream, hot], axis=1).ravel()
    auto = replay(references, Auto(), CAPACITY * PAGE)[1]
    fifo = replay(references, Fifo(), CAPACITY * PAGE)[1]
    assert auto <= 0.5 * fifo


def simulate_pages(policy: Policy | str, pages: list[int], memory_pages: int, standby: bool = True) -> Simulation:
    array = np.array(pages, np.int64)
    sizes = {0: PAGE}
    return simulate(policy, array * 0, array, memory=memory_pages * PAGE, page_sizes=sizes, standby=standby)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=400), st.integers(1, 40), st.sampled_from(list(POLICIES)),
    st.booleans(),
)  # fmt: skip
def test_simulator_counts_are_possible(pages: list[int], memory: int, name: str, standby: bool) -> None:
    result = simulate_pages(name, pages, memory, standby)
    distinct = len(set(pages))
    assert result.references == len(pages)
    assert distinct <= result.misses <= len(pages)
    assert result.misses + result.refaults <= len(pages)
    if distinct <= memory:
        assert result.misses == distinct
    if not standby or name in ("fifo", "mru"):
        assert result.refaults == 0


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 64), st.booleans()), max_size=200),
    st.integers(64, 200), st.sampled_from(list(POLICIES)), st.booleans(),
)  # fmt: skip
def test_simulator_never_holds_more_than_the_memory(
    references: list[tuple[int, int, bool]], memory: int, name: str, standby: bool
) -> None:
    state = read_policy(name).start(memory * PAGE, standby=standby)
    pager = IdealPager(state, memory * PAGE, {0: PAGE})
    for page, count, is_prefetched in references:
        pager.touch_run(0, page, count, 400, is_prefetched=is_prefetched)
        runs = [run for group in state.groups for queue in group.queues for run in queue]
        assert pager.used == sum(run.bytes for run in runs) == sum(group.bytes for group in state.groups)
        assert pager.used <= memory * PAGE
        pages = [run.page + i for run in runs for i in range(run.count)]
        assert len(pages) == len(set(pages))
        if not is_prefetched:
            assert all(run.segment < AHEAD for run in runs if run.page <= page < run.page + run.count)


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 30))
def test_fifo_is_what_everybody_knows(pages: list[int], memory: int) -> None:
    queue: list[int] = []
    misses = 0
    for page in pages:
        if page not in queue:
            misses += 1
            queue = [*queue, page][-memory:]
    assert simulate_pages(Fifo(), pages or [0], memory).misses == (misses or 1)


def test_read_policy_knows_names_and_objects() -> None:
    assert read_policy(" S3FIFO ") == S3Fifo()
    assert read_policy(S3Fifo(small=0.2)) == S3Fifo(small=0.2)
    assert [kind().name for kind in POLICIES.values()] == ["fifo", "second_chance", "s3fifo", "mru", "auto"]
    assert isinstance(read_policy("mru"), Mru)


def test_read_policy_of_what_is_none_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"^UMAPPY_POLICY is 'lru': wants one of 'fifo', 'second_chance'"):
        read_policy("lru", "UMAPPY_POLICY")
    with pytest.raises(TypeError, match="policy is 7"):
        read_policy(7)


@pytest.mark.parametrize("make", [lambda: S3Fifo(small=-0.1), lambda: SecondChance(1.0), lambda: Auto(ghosts=17)])
def test_policy_with_impossible_shares_raises(make: Callable[[], Policy]) -> None:
    with pytest.raises(ValueError, match="wants"):
        make()


def test_water_marks_left_out_follow_the_budget_and_each_other() -> None:
    assert WaterMarks.choose(1 << 20) == WaterMarks(1 << 15, 1 << 16)
    assert WaterMarks.choose(1 << 20, low=1 << 18) == WaterMarks(1 << 18, 1 << 18)
    assert WaterMarks.choose(1 << 20, high=1 << 10) == WaterMarks(1 << 10, 1 << 10)
    with pytest.raises(ValueError, match="low_water is 128 KiB: wants at most high_water"):
        WaterMarks.choose(1 << 20, low=1 << 17, high=1 << 16)
    with pytest.raises(ValueError, match="high_water is 768 KiB: wants at most half"):
        WaterMarks.choose(1 << 20, high=3 << 18)

"""`a[indices].sum()` of uniformly random elements: of a cold file; after a pass over it, with ever less memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_values
from harness.place import Place
from harness.rounds import Run
from peers import arrays, memmap, memory
from rows.random_reads import SEED, gather_umappy

SUBJECT = "random reads"
FEW = ("umappy", "np.memmap", "np.memmap MADV_RANDOM", "numpy in RAM")
CONTENDERS = (*FEW, "umappy advise random", *arrays.FORMS)


def prepare(bench: Bench, place: Place, names: tuple[str, ...], warm: bool) -> dict[str, Run]:
    numbers = place.numbers(bench.size)
    common = {"path": numbers.path, "count": numbers.count, "reads": bench.reads}
    expected = {"sum": float(compute_values(numbers.pick(bench.reads, SEED)).sum())}

    def make(function: Callable[..., dict[str, float]], **arguments: object) -> Run:
        return bench.prepare(function, place, expected=expected, **common | arguments)

    contenders = {
        "umappy": make(gather_umappy, memory=bench.memory, warm=warm),
        "umappy advise random": make(gather_umappy, memory=bench.memory, hint="random"),
        "np.memmap": make(memmap.gather_memmap, seed=SEED, warm=warm),
        "np.memmap MADV_RANDOM": make(memmap.gather_memmap, seed=SEED, advice="random", warm=warm),
        "numpy in RAM": make(memory.gather_resident, seed=SEED),
        **{
            form: make(arrays.gather_array, form=form, path=arrays.find(place, numbers, form), seed=SEED)
            for form in arrays.FORMS
            if form in names
        },
    }
    return {name: contenders[name] for name in names}


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_random_reads(contest: Contest, bench: Bench, place: Place, contender: str) -> None:
    contest.run(
        SUBJECT, contender, lambda: prepare(bench, place, CONTENDERS, warm=False), place=place, items=bench.reads
    )


@pytest.mark.parametrize("contender", FEW)
@pytest.mark.axis("times", (0.5, 1, 2, 4, 8, 16))
@pytest.mark.device("fast")
def bench_random_reads_by_oversubscription(
    contest: Contest, bench: Bench, place: Place, contender: str, times: float
) -> None:
    """After a pass over the file, as else nothing of it is in memory, however much of that there is."""
    capped = bench.capped_for(times)
    contest.run(
        f"{SUBJECT} after a pass over all",
        contender,
        lambda: prepare(capped, place, FEW, warm=True),
        place=place,
        axis={"oversubscription": times},
        items=bench.reads,
        limit=capped.limit,
        rounds=1 if bench.rounds < 5 else 3,
    )

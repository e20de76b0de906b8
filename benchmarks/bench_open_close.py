"""A file opened, one element of it read, and closed, again and again: other elements each time, at first cold."""

from __future__ import annotations

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_values
from harness.place import Place
from harness.rounds import Run
from peers import arrays
from peers.opens import SEED, open_often

TIMES_MAX = 300
CONTENDERS = {"umappy": "shared pager", "umappy, a pager each": "own pager", "np.memmap": "memmap"}


def choose_times(bench: Bench) -> int:
    return min(TIMES_MAX, bench.reads // 20)


def prepare(bench: Bench, place: Place) -> dict[str, Run]:
    times = choose_times(bench)
    numbers = place.numbers(bench.size // 8)
    common = {"count": numbers.count, "times": times, "memory": bench.memory}
    expected = {"sum": float(compute_values(numbers.pick(times, SEED)).sum())}

    def make(form: str, path: str) -> Run:
        return bench.prepare(open_often, place, expected=expected, form=form, path=path, **common)

    ours = {name: make(form, numbers.path) for name, form in CONTENDERS.items()}
    return ours | {form: make(form, arrays.find(place, numbers, form)) for form in arrays.FORMS}


@pytest.mark.parametrize("contender", [*CONTENDERS, *arrays.FORMS])
@pytest.mark.device("fast")
def bench_open_close(contest: Contest, bench: Bench, place: Place, contender: str) -> None:
    contest.run(
        "open, read one element, close",
        contender,
        lambda: prepare(bench, place),
        place=place,
        items=choose_times(bench),
    )

"""The sum of a cold file: once, and with ever less memory for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.bench import Bench
from harness.contest import Contest
from harness.number_file import compute_sum
from harness.place import Place
from harness.rounds import Run
from peers import arrays, memmap, memory
from rows.sequential import sum_umappy

SUBJECT = "sequential sum"
CONTENDERS = ("umappy", "np.memmap", "np.memmap MADV_SEQUENTIAL", "numpy in RAM", *arrays.FORMS)


def prepare(bench: Bench, place: Place, size: int) -> dict[str, Run]:
    numbers = place.numbers(size)
    expected = {"sum": compute_sum(numbers.count)}

    def make(function: Callable[..., dict[str, float]], **arguments: object) -> Run:
        return bench.prepare(function, place, expected=expected, **{"path": numbers.path} | arguments)

    return {
        "umappy": make(sum_umappy, memory=bench.memory),
        "np.memmap": make(memmap.sum_memmap),
        "np.memmap MADV_SEQUENTIAL": make(memmap.sum_memmap, advice="sequential"),
        "numpy in RAM": make(memory.sum_resident),
        **{form: make(arrays.sum_array, form=form, path=arrays.find(place, numbers, form)) for form in arrays.FORMS},
        "device": bench.prepare_limits(place),
    }


@pytest.mark.parametrize("contender", [*CONTENDERS, "device"])
def bench_sequential_sum(contest: Contest, bench: Bench, place: Place, contender: str) -> None:
    contest.run(
        SUBJECT,
        contender,
        lambda: prepare(bench, place, bench.size),
        place=place,
        nbytes=bench.size,
        seconds=(lambda sample: bench.size / sample.values["sequential"]) if contender == "device" else None,
    )


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.axis("times", (0.5, 1, 2, 4, 8, 16))
@pytest.mark.device("fast")
def bench_sequential_sum_by_oversubscription(
    contest: Contest, bench: Bench, place: Place, contender: str, times: float
) -> None:
    capped = bench.capped_for(times)

    def prepare_capped() -> dict[str, Run]:
        contenders = prepare(capped, place, bench.size)
        del contenders["device"]
        return contenders

    contest.run(
        SUBJECT,
        contender,
        prepare_capped,
        place=place,
        axis={"oversubscription": times},
        nbytes=bench.size,
        limit=capped.limit,
        rounds=1 if bench.rounds < 5 else 3,
    )

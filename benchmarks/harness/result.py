"""A row of the table: a figure of the peer's, one of ours, what they make, and what they should."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from harness.errors import ContenderError
from harness.rounds import Figure, Rounds

Verdict = Literal["pass", "fail", "problem", "-"]
Ratio = Callable[[float, float], float]


def divide(peer: float, ours: float) -> float:
    """How many times longer the peer takes."""
    return peer / ours if ours else 0.0


def divide_rates(peer: float, ours: float) -> float:
    """Our rate as a part of the peer's."""
    return ours / peer if peer else 0.0


def subtract(peer: float, ours: float) -> float:
    """How much more of something we take."""
    return ours - peer


def save(peer: float, ours: float) -> float:
    """Which part of the peer's we do without."""
    return 1 - ours / peer if peer else 0.0


@dataclass(frozen=True)
class Target:
    """What a ratio of ours should reach ("at least") or keep to ("at most")."""

    sense: Literal["at least", "at most"]
    value: float
    unit: str = "x"

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.value if self.sense == "at least" else ratio <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.sense == 'at least' else '<='} {self.format(self.value)}"

    def format(self, ratio: float) -> str:
        return f"{ratio:.0%}" if self.unit == "%" else f"{ratio:.3g}{self.unit}"


@dataclass(frozen=True)
class Side:
    """A contender in a comparison: which one, the figure of its samples that counts, and how that reads."""

    name: str
    figure: Figure
    format: Callable[[float], str]

    def describe(self, rounds: Rounds) -> str:
        return self.format(rounds.median(self.name, self.figure)) if rounds.samples.get(self.name) else "-"


@dataclass(frozen=True)
class Result:
    """A finished row. `ratios` has one a round; the median counts."""

    row: str
    place: str
    against: str
    peer: str
    ours: str
    ratios: tuple[float, ...]
    target: Target | None
    problem: ContenderError | None = None
    notes: tuple[str, ...] = ()
    rounds: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def verdict(self) -> Verdict:
        if self.problem is not None:
            return "problem"
        if self.target is None or self.ratio is None:
            return "-"
        return "pass" if self.target.is_met(self.ratio) else "fail"


def compare(
    row: str,
    place: str,
    rounds: Rounds,
    peer: Side,
    ours: Side,
    ratio: Ratio,
    target: Target | None,
    *,
    against: str | None = None,
    problem: ContenderError | None = None,
    notes: tuple[str, ...] = (),
) -> Result:
    """Makes a row of two contenders that took turns. `problem` marks one that compares less than it should."""
    found = rounds.find_problem(peer.name, ours.name)
    ratios: tuple[float, ...] = ()
    if found is None:
        pairs = zip(rounds.collect(peer.name, peer.figure), rounds.collect(ours.name, ours.figure), strict=True)
        ratios = tuple(ratio(theirs, our) for theirs, our in pairs)
    return Result(
        row=row,
        place=place,
        against=against or peer.name,
        peer=peer.describe(rounds),
        ours=ours.describe(rounds),
        ratios=ratios,
        target=target,
        problem=found or problem,
        notes=notes,
        rounds={name: [dataclasses.asdict(sample) for sample in samples] for name, samples in rounds.samples.items()},
    )

"""How a contender looks: the same in every plot of a run, and told apart without colours, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from findings.model import OURS, is_ceiling, is_ours

# By how a name begins; the longest that fits counts. Of the palette of Okabe and Ito, which colour-blind readers can
# tell apart; its yellow is too pale for lines.
COLOURS = {
    OURS: "#D55E00",
    "np.memmap": "#0072B2",
    "mmap": "#0072B2",
    "blosc2": "#009E73",
    "zarr": "#CC79A7",
    "h5py": "#E69F00",
    "hdf5plugin": "#E69F00",
    "duckdb": "#5B3A8C",
    "polars": "#56B4E9",
    "zstandard": "#5B3A8C",
    "libnbd": "#009E73",
    "nbdcopy": "#CC79A7",
    "numpy": "#000000",
    "numpy in RAM": "#6E6E6E",
    "device": "#878787",
    "bare": "#6E6E6E",
}
OTHERS = ("#8C6D1F", "#44AA99", "#882255", "#332288")
MARKERS = "os^Dv<>P"
DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
LIMIT_DASH = (0, (1, 1))

Dash = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    dash: Dash
    width: float
    order: int
    """What is drawn later lies above."""


@dataclass(frozen=True)
class Wardrobe:
    """The looks of all contenders of a run, which decide together: ways of the same library share its colour."""

    contenders: Sequence[str]

    def dress(self, contender: str) -> Look:
        family = find_family(contender)
        relatives = sorted({name for name in self.contenders if find_family(name) == family} | {contender})
        way = relatives.index(contender)
        strangers = sorted({find_family(name) for name in (*self.contenders, contender)} - COLOURS.keys())
        colour = COLOURS.get(family) or OTHERS[strangers.index(family) % len(OTHERS)]
        marker = MARKERS[(list(COLOURS).index(family) if family in COLOURS else len(family)) % len(MARKERS)]
        if is_ours(contender):
            return Look(colour, "o", DASHES[way % len(DASHES)], 3.2 if contender == OURS else 2.4, 9)
        if is_ceiling(contender):
            return Look(colour, ".", LIMIT_DASH, 1.4, 3)
        return Look(colour, marker, DASHES[way % len(DASHES)], 1.6, 5)


def find_family(contender: str) -> str:
    """Returns how the name begins: one of COLOURS, else its first word."""
    known = [name for name in COLOURS if contender.lower().startswith(name.lower())]
    return max(known, key=len) if known else contender.split()[0]

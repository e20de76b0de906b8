"""benchmarks/findings: plots of the benchmarks' JSON, and the files that publish.py makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench_documents import MIB, make_document, make_entry, make_problem, run_program, write_document
from findings.canvas import spread
from findings.latency_plot import find_latencies
from findings.model import Findings
from findings.plots import make_name, write_plots
from findings.read import parse_findings
from findings.style import COLOURS, Wardrobe, find_family

pytest.importorskip("matplotlib")

TIMES = (0.5, 1, 4, 16)
SPREAD = [1.0, 1.1, 1.2]


def make_entries() -> Iterator[dict[str, Any]]:
    for times in TIMES:
        for contender in ("umappy", "np.memmap", "np.memmap MADV_SEQUENTIAL"):
            yield make_entry("sequential sum", contender, SPREAD, axis={"oversubscription": times})
        yield make_entry(
            "random reads", "umappy", SPREAD, axis={"oversubscription": times}, bytes_of_work=None, items=9
        )
    yield make_entry("sequential sum", "numpy in RAM", SPREAD, axis={"oversubscription": 0.5})
    for size in (4096, 65536):
        yield make_entry("sequential sum", "umappy", SPREAD, axis={"page_size": size})
    for size in (256 * MIB, 1024 * MIB):
        yield make_entry("sort", "umappy", SPREAD, axis={"size": size})
    for size in (1 << 30, 1 << 44):
        told = {"values": {"bytes_per_page": [90.0, 91.0, 92.0]}}
        yield make_entry("growth", "umappy", SPREAD, axis={"region": size}, bytes_of_work=None, items=99, **told)
    latencies = {name: [value] * 3 for name, value in {"p1": 3.0, "p50": 5.0, "p99.9": 90.0, "max": 800.0}.items()}
    yield make_entry("fault to data", "umappy", SPREAD, bytes_of_work=None, items=1, values=latencies)


PROBLEMS = [
    make_problem("sequential sum", "numpy in RAM", "killed: out of memory", axis={"oversubscription": times})
    for times in TIMES[1:]
]


def find() -> Findings:
    return parse_findings(make_document(list(make_entries()), PROBLEMS))


def read_pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    pixels: np.ndarray = imread(path)
    return pixels[..., :3]


def has_colour(path: Path, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(read_pixels(path) - wanted).max(axis=-1) < 0.02).any())


def test_plots_are_of_each_axis_and_distribution_and_show_the_contenders(tmp_path: Path) -> None:
    plots = write_plots(find(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fault-to-data-latency-fast-device.png",
        "growth-by-region-bytes-per-page-fast-device.png",
        "growth-by-region-fast-device.png",
        "random-reads-by-oversubscription-fast-device.png",
        "sequential-sum-by-oversubscription-fast-device.png",
        "sequential-sum-by-page-size-fast-device.png",
        "sort-by-size-fast-device.png",
    ]
    assert {plot.path for each in plots.values() for plot in each} == set(tmp_path.iterdir())
    for path in tmp_path.iterdir():
        assert has_colour(path, COLOURS["umappy"]), path
        assert read_pixels(path).shape[1] > 800
    assert has_colour(tmp_path / "sequential-sum-by-oversubscription-fast-device.png", COLOURS["np.memmap"])


def test_plots_are_only_of_what_the_run_has(tmp_path: Path) -> None:
    lone = make_entry("sequential sum", "umappy", SPREAD, axis={"oversubscription": 4})
    plots = write_plots(parse_findings(make_document([lone])), tmp_path)
    assert plots == {"sequential sum": []}
    assert list(tmp_path.iterdir()) == []


def test_plots_of_an_earlier_run_go(tmp_path: Path) -> None:
    (tmp_path / "old.png").touch()
    write_plots(find(), tmp_path)
    assert not (tmp_path / "old.png").exists()


def test_plot_shows_who_gave_up_and_where(tmp_path: Path) -> None:
    """The cross at 16x has the colour of its contender, whose line ends far from there."""
    name = "sequential-sum-by-oversubscription-fast-device.png"
    write_plots(find(), tmp_path / "with")
    write_plots(parse_findings(make_document(list(make_entries()))), tmp_path / "without")
    looks = [read_pixels(tmp_path / folder / name) for folder in ("with", "without")]
    wanted = np.array([0x6E] * 3) / 255
    corners = [pixels[pixels.shape[0] * 6 // 10 : pixels.shape[0] * 9 // 10] for pixels in looks]
    of_crosses, of_none = ((np.abs(corner - wanted).max(axis=-1) < 0.02).sum() for corner in corners)
    assert of_crosses > of_none + 100


def test_publish_makes_the_same_files_of_the_same_json(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- performance -->\n<!-- /performance -->\n")
    source = write_document(tmp_path / "bench.json", list(make_entries()), PROBLEMS)
    seen = []
    for seed in ("1", "2"):
        done = run_program("publish.py", source, "--docs", tmp_path, "--readme", readme, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        made = [tmp_path / "performance.md", readme, *sorted((tmp_path / "performance").iterdir())]
        seen.append({path.name: path.read_bytes() for path in made})
    assert len(seen[0]) == 9
    assert seen[0] == seen[1]
    page = seen[0]["performance.md"].decode()
    assert "(performance/sort-by-size-fast-device.png)" in page
    assert "killed: out of memory" in page
    assert "| sequential sum, oversubscription 16x |" in seen[0]["README.md"].decode()


def test_contender_looks_the_same_in_every_plot_and_unlike_its_relatives() -> None:
    wardrobe = Wardrobe(find().contenders)
    plain, advised = wardrobe.dress("np.memmap"), wardrobe.dress("np.memmap MADV_SEQUENTIAL")
    assert plain.colour == advised.colour
    assert plain.dash != advised.dash
    assert wardrobe.dress("umappy").width > plain.width
    strange = Wardrobe(("quux", "corge", "umappy"))
    assert strange.dress("quux").colour != strange.dress("corge").colour


def test_families_are_of_the_longest_name_whatever_its_case() -> None:
    assert [find_family(name) for name in ("numpy in RAM", "numpy", "DuckDB 2 threads", "quux x")] == [
        "numpy in RAM",
        "numpy",
        "duckdb",
        "quux",
    ]


def test_latencies_are_in_seconds_and_ascend_to_the_slowest() -> None:
    values = {"p99.9_us": [7.0], "max_ns": [9000.0], "p50": [2.0], "sum": [5.0], "p90": [None]}
    [comparison] = parse_findings(make_document([make_entry("x", "umappy", [1.0], values=values)])).comparisons
    parts, seconds = zip(*find_latencies(comparison.entries[0]), strict=True)
    assert parts == pytest.approx((0.5, 0.999, 1.0))
    assert seconds == pytest.approx((2e-6, 7e-6, 9e-6))


@pytest.mark.parametrize(
    ("heights", "apart"),
    [
        ([0.5], [0.5]),
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.0, 0.05], [0.0, 0.1, 0.2]),
    ],
)
def test_labels_move_apart_around_their_middle(heights: list[float], apart: list[float]) -> None:
    assert spread(heights, 0.1) == pytest.approx(apart)


def test_labels_that_were_pushed_over_the_top_come_back() -> None:
    places = spread([0.97, 0.98, 0.99], 0.1)
    assert places[-1] <= 1
    assert places == sorted(places)


def test_name_of_a_plot_is_plain() -> None:
    assert make_name("a += 1; flush() by size, 0.5x") == "a-plus-1-flush-by-size-0.5x"

"""benchmarks/findings: what is made of the benchmarks' JSON: figures, tables, the page, the README's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench_documents import MIB, make_document, make_entry, make_problem, run_program, write_document
from findings.headlines import make_headlines
from findings.losses import make_loss_table
from findings.model import Findings
from findings.page import format_page
from findings.ratios import compare_to_ours, find_fastest_peer, find_losses
from findings.read import FindingsError, parse_findings, read_findings
from findings.readme import BEGIN, END, update_readme
from findings.tables import make_tables
from findings.units import format_number, format_seconds

OURS = make_entry("sum", "umappy", [1.0, 2.0, 4.0])
PEER = make_entry("sum", "np.memmap", [2.0, 6.0, 6.0])
# A ratio of its own each round: 0.5, 0.25, 0.5.
FASTER = make_entry("sum", "blosc2", [0.5, 0.5, 2.0])
CEILING = make_entry("sum", "numpy in RAM", [0.1, 0.1, 0.1])
KILLED = make_problem("sum", "zarr", "killed:\nout of | memory")


def find(*entries: dict[str, object], problems: tuple[dict[str, object], ...] = (), **options: object) -> Findings:
    return parse_findings(make_document(entries, problems, **options))  # type: ignore[arg-type]


def test_ratio_is_the_median_of_the_ratios_of_rounds_and_its_spread() -> None:
    [comparison] = find(OURS, PEER).comparisons
    ratios = compare_to_ours(comparison)["np.memmap"]
    assert ratios.each == (2.0, 3.0, 1.5)
    assert (ratios.median, ratios.least, ratios.most) == (2.0, 1.5, 3.0)


def test_ratio_to_a_contender_that_did_less_of_the_work_is_by_item() -> None:
    ours = make_entry("gather", "umappy", [2.0], bytes_of_work=None, items=1000)
    slow = make_entry("gather", "one by one", [1.0], bytes_of_work=None, items=100)
    [comparison] = find(ours, slow).comparisons
    assert compare_to_ours(comparison)["one by one"].each == (5.0,)


def test_ratio_of_what_took_no_time_or_counts_something_else_is_none() -> None:
    still = make_entry("sum", "still", [0.0, 1.0, 1.0])
    other = make_entry("sum", "other", [1.0, 1.0, 1.0], bytes_of_work=None, items=3)
    [comparison] = find(OURS, still, other).comparisons
    assert compare_to_ours(comparison) == {}


def test_comparisons_of_other_devices_and_points_stay_apart() -> None:
    elsewhere = make_entry("sum", "np.memmap", [1.0], device="disk")
    later = make_entry("sum", "np.memmap", [1.0], axis={"oversubscription": 4})
    comparisons = find(OURS, elsewhere, later).comparisons
    assert [len(comparison.entries) for comparison in comparisons] == [1, 1, 1]
    assert all(find_fastest_peer(comparison) is None for comparison in comparisons)


def test_table_shows_rate_ratio_spread_and_costs() -> None:
    [table] = make_tables(find(OURS, PEER), "sum")
    # The median of 1, 2 and 4 seconds for 1e9 bytes; CPU 0.5 s; 2e9 bytes read.
    assert table.rows == (
        ("umappy", "fast", "0.500 GB/s", "1", "-", "0.500 s/GB", "100 MiB", "2.00", "0"),
        ("np.memmap", "fast", "0.167 GB/s", "2.00x", "1.50x to 3.00x", "0.500 s/GB", "100 MiB", "2.00", "0"),
    )
    assert table.notes == ("Memory limit: 224 MiB.",)


def test_table_of_items_shows_time_cpu_and_bytes_for_each() -> None:
    costs = {"cpu_seconds": [0.01], "device_bytes_read": [4096 * 1000], "device_bytes_written": [None]}
    entry = make_entry("random reads", "umappy", [0.05], bytes_of_work=None, items=1000, peak_bytes=[None], **costs)
    [table] = make_tables(find(entry), "random reads")
    assert table.rows == (("umappy", "fast", "50.0 us", "1", "-", "10.0 us", "-", "4 KiB", "-"),)


def test_table_begins_with_ours_then_peers_by_speed_and_ends_with_ceilings_and_problems() -> None:
    way = make_entry("sum", "umappy fifo", [9.0, 9.0, 9.0])
    [table] = make_tables(find(CEILING, PEER, FASTER, way, OURS, problems=(KILLED,)), "sum")
    assert [row[0] for row in table.rows] == ["umappy", "umappy fifo", "blosc2", "np.memmap", "numpy in RAM", "zarr"]


def test_markdown_tells_problems_on_one_line_and_escapes_them() -> None:
    [table] = make_tables(find(OURS, problems=(KILLED,)), "sum")
    assert r"| zarr | fast | killed: out of \| memory | - | - | - | - | - | - |" in table.format_markdown().splitlines()


def test_table_marks_what_ran_uncapped_but_not_the_device() -> None:
    free = make_entry("sum", "np.memmap", [1.0], cap="none")
    device = make_entry("sum", "device", [1.0], cap="none")
    [table] = make_tables(find(free, device), "sum")
    assert [row[0] for row in table.rows] == ["np.memmap (uncapped)", "device"]


def test_table_along_an_axis_has_its_points_and_differing_limits() -> None:
    entries = [
        make_entry("sum", "umappy", [1.0], axis={"oversubscription": times}, limit=limit * MIB)
        for times, limit in ((0.5, 1024), (16, 32))
    ]
    plain, along = make_tables(find(OURS, *entries), "sum")
    assert (plain.title, along.title) == ("sum", "sum by oversubscription")
    assert along.header[:4] == ("contender", "device", "oversubscription", "limit")
    assert [row[2:4] for row in along.rows] == [("0.5x", "1 GiB"), ("16x", "32 MiB")]


@pytest.mark.parametrize("name", ["size_gib", "gib"])
def test_axis_in_gib_is_one_in_bytes(name: str) -> None:
    [comparison] = find(make_entry("sort", "umappy", [1.0], axis={name: 0.25})).comparisons
    assert comparison.key.axis == (("size", 256 * MIB),)


def test_losses_are_the_worst_first_and_ceilings_apart() -> None:
    near = make_entry("other", "np.memmap", [0.9, 1.9, 3.9])
    findings = find(OURS, PEER, FASTER, CEILING, make_entry("other", "umappy", [1.0, 2.0, 4.0]), near)
    assert [loss.theirs.contender for loss in find_losses(findings)] == ["numpy in RAM", "blosc2", "np.memmap"]
    assert make_loss_table(findings, of_peers=True).rows == (
        ("sum", "fast", "blosc2", "2.00 GB/s", "0.500 GB/s", "0.500x", "0.250x to 0.500x"),
        ("other", "fast", "np.memmap", "0.526 GB/s", "0.500 GB/s", "0.950x", "0.900x to 0.975x"),
    )
    assert [row[2] for row in make_loss_table(findings, of_peers=False).rows] == ["numpy in RAM"]


def test_headline_is_against_the_fastest_peer_even_where_it_wins() -> None:
    entries = [entry | {"extra_info": entry["extra_info"] | {"subject": "sequential sum"}} for entry in
               (OURS, PEER, FASTER, CEILING)]  # fmt: skip
    table = make_headlines(find(*entries))
    assert table is not None
    assert table.rows == (("sequential sum", "0.500 GB/s", "2.00 GB/s (blosc2)", "0.500x", "0.250x to 0.500x"),)


def test_headlines_are_at_most_ten_each_of_its_own_comparison() -> None:
    subjects = (
        "sequential sum", "random reads", "random reads by threads", "gather", "a += 1; flush()", "loop", "sort",
        "zstd sequential sum", "random 64 KiB reads of a compressed file", "random writes of 8 bytes",
        "network random reads", "network sequential", "fault to data", "open, read one element, close",
    )  # fmt: skip
    pairs = [make_entry(subject, who, [1.0]) for subject in subjects for who in ("umappy", "np.memmap")]
    table = make_headlines(find(*pairs))
    assert table is not None
    assert [row[0] for row in table.rows] == [
        "sequential sum", "random reads", "gather", "a += 1; flush()", "loop", "sort", "zstd sequential sum",
        "random 64 KiB reads of a compressed file", "network random reads", "fault to data",
    ]  # fmt: skip


def test_page_tells_machine_versions_cap_time_and_losses() -> None:
    page = format_page(find(OURS, FASTER, machine={"cap": "none"}), {}, Path("docs"))
    for told in ("6.18.1", "2026-11-20", "abc1234", "| zarr | 3.1 |", "nothing: uncapped", "quick, 3 rounds"):
        assert told in page
    losses = page.partition("## Where peers win")[2].partition("## ")[0]
    assert "| sum | fast | blosc2 |" in losses


def test_page_without_losses_says_so() -> None:
    assert "In no comparison of this run is a peer faster" in format_page(find(OURS, PEER), {}, Path("docs"))


def test_readme_gets_the_table_between_its_markers_and_nothing_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    findings = find(make_entry("sort", "umappy", [1.0]), make_entry("sort", "np.memmap", [4.0]))
    update_readme(readme, findings)
    once = readme.read_text()
    assert once.startswith(f"before\n{BEGIN}\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "| sort | 1.00 GB/s | 0.250 GB/s (np.memmap) | 4.00x | one round |" in once
    assert "old" not in once
    update_readme(readme, findings)
    assert readme.read_text() == once


@pytest.mark.parametrize("text", ["nothing", f"{END}\n{BEGIN}\n", f"{BEGIN}\n"])
def test_readme_without_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(FindingsError, match="put them where the table belongs"):
        update_readme(readme, find(make_entry("sort", "umappy", [1.0]), make_entry("sort", "np.memmap", [4.0])))
    assert readme.read_text() == text


def test_readme_of_this_project_has_the_markers() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "not of umappy's benchmarks"),
        ('{"benchmarks": []}', "'machine_info' is missing"),
        (json.dumps(make_document([])), "a run without results"),
        (json.dumps(make_document([], [KILLED])), "a run without results"),
        (json.dumps(make_document([OURS]) | {"benchmarks": [{"name": "x", "stats": {"data": [1]}}]}), "'extra_info'"),
        (json.dumps(make_document([OURS | {"stats": {"data": [1.0]}}])), "one of everything a round"),
        (json.dumps(make_document([OURS | {"stats": {"data": []}}])), "one of everything a round"),
    ],
)
def test_file_that_is_not_ours_or_empty_gives_its_name_the_reason_and_the_remedy(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    with pytest.raises(FindingsError, match=reason) as caught:
        read_findings(path)
    assert str(path) in str(caught.value)
    assert "make bench" in str(caught.value)


def test_file_that_is_missing_gives_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FindingsError, match="No such file"):
        read_findings(tmp_path / "missing.json")


def test_publish_prints_tables_and_fails_clearly_without_results(tmp_path: Path) -> None:
    good = write_document(tmp_path / "good.json", [OURS, FASTER])
    done = run_program("publish.py", good)
    assert done.returncode == 0, done.stderr
    assert "0.250x to 0.500x" in done.stdout
    assert "where peers win" in done.stdout
    empty = write_document(tmp_path / "empty.json", [])
    done = run_program("publish.py", empty)
    assert done.returncode == 2
    assert "a run without results" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (0.0123, "0.0123"), (1, "1.00"), (15.26, "15.3"), (123.4, "123"), (12345, "12,345")]
)
def test_numbers_have_three_digits_and_no_exponent(number: float, text: str) -> None:
    assert format_number(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.50 s"), (0.0301, "30.1 ms"), (1e-6, "1.00 us"), (2.2e-7, "220 ns")]
)
def test_seconds_have_the_unit_that_fits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text

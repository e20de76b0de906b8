"""benchmarks/: rooms on a device, trials that take too long, and results of sorts that are checked."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def path_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_room_that_is_left_takes_its_files_along(tmp_path: Path) -> None:
    from harness.place import Place

    (tmp_path / "other").write_text("stays")
    with Place("disk", str(tmp_path)).open_room(MIB) as room:
        room.numbers(MIB)
        assert len(list(Path(room.folder).iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_place_without_space_for_a_room_drops_files_and_makes_them_again(tmp_path: Path) -> None:
    from harness.place import Place

    place = Place("disk", str(tmp_path))
    path = Path(place.numbers(MIB).path)
    (tmp_path / "folder").mkdir()
    place.make_room(1 << 62)
    assert list(tmp_path.iterdir()) == []
    place.numbers(MIB)
    assert path.stat().st_size == MIB


def test_trial_without_patience_is_stopped(tmp_path: Path) -> None:
    from harness.errors import ContenderError
    from harness.trial import Trial
    from rows.sequential import sum_resident

    with pytest.raises(ContenderError, match="stopped after 0 s"):
        Trial(sum_resident, {"memory": MIB}, 256 * MIB, timeout_seconds=0.01).run()


@pytest.mark.parametrize("change", ["none", "order", "value"])
def test_sort_whose_result_is_wrong_fails(tmp_path: Path, change: str) -> None:
    import numpy as np

    from harness.errors import ContenderError
    from harness.sample import Sample
    from rows.sort import check_after
    from umappy.cli.data import check_file, write_random

    path = str(tmp_path / "numbers")
    before = write_random(path, MIB, seed=1)

    def sort() -> Sample:
        numbers = np.sort(np.fromfile(path, np.int64))
        if change == "order":
            numbers[[7, 8]] = numbers[[8, 7]]
        elif change == "value":
            numbers[7] = numbers[8]
        numbers.tofile(path)
        return Sample(seconds=1.0)

    run = check_after(sort, path, check_file, before)
    if change == "none":
        assert run().seconds == 1.0
    else:
        with pytest.raises(ContenderError, match="wrong result"):
            run()

"""The default pager and the settings it takes: once a process, so each test has a process of its own."""

from collections.abc import Callable
from pathlib import Path

RunPython = Callable[..., object]
MakeFile = Callable[..., Path]


def test_default_pager_is_made_once_from_the_settings(run_python: RunPython) -> None:
    run_python(
        """
        umappy.config.memory, umappy.config.fillers = "32MiB", 3
        pager = umappy.default_pager()
        assert pager.memory == 32 << 20
        assert pager.stats().fillers == 3
        assert umappy.default_pager() is pager
        """
    )


def test_default_pager_serves_regions_that_were_given_none(run_python: RunPython, make_file: MakeFile) -> None:
    run_python(
        """
        umappy.config.page_size = 16384
        with umappy.umap(sys.argv[1]) as region:
            assert region.pager is umappy.default_pager()
            assert region.page_size == 16384
            assert region[:] == Path(sys.argv[1]).read_bytes()
        """,
        make_file(100_000),
    )


def test_settings_are_frozen_once_the_default_pager_lives(run_python: RunPython) -> None:
    run_python(
        """
        umappy.default_pager()
        for name in ("memory", "fillers", "page_size"):
            try:
                setattr(umappy.config, name, 1 << 26)
            except RuntimeError as error:
                assert "default pager" in str(error)
            else:
                raise AssertionError(name)
        assert umappy.Pager("8MiB", fillers=2).stats().fillers == 2
        """
    )


def test_settings_stay_open_while_only_other_pagers_live(run_python: RunPython) -> None:
    run_python(
        """
        with umappy.Pager("8MiB"):
            umappy.config.fillers = 2
        assert umappy.default_pager().stats().fillers == 2
        """
    )


def test_settings_stay_open_where_the_default_pager_could_not_be_made(run_python: RunPython) -> None:
    run_python(
        """
        umappy.config.memory = "4KiB"
        try:
            umappy.default_pager()
        except umappy.BudgetError:
            umappy.config.memory = "32MiB"
        assert umappy.default_pager().memory == 32 << 20
        """
    )


def test_arguments_that_are_none_make_no_default_pager(run_python: RunPython, make_file: MakeFile) -> None:
    run_python(
        """
        for arguments in [{"size": 0}, {"mode": "rw"}, {"page_size": 5}, {"size": "5X"}]:
            try:
                umappy.umap(sys.argv[1], **arguments)
            except ValueError:
                umappy.config.fillers = 2
            else:
                raise AssertionError(arguments)
        """,
        make_file(5000),
    )


def test_environment_sets_the_default_pager(run_python: RunPython, monkeypatch: object) -> None:
    monkeypatch.setenv("UMAPPY_MEMORY", "48MiB")  # type: ignore[attr-defined]
    run_python("assert umappy.default_pager().memory == 48 << 20")


def test_first_use_by_many_threads_makes_one_default_pager(run_python: RunPython) -> None:
    run_python(
        """
        found = []
        together = threading.Barrier(16)
        def find():
            together.wait()
            found.append(umappy.default_pager())
        threads = [threading.Thread(target=find) for _ in range(16)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(found) == 16
        assert len(set(map(id, found))) == 1
        """
    )


def test_default_pager_that_was_closed_is_made_anew(run_python: RunPython) -> None:
    run_python(
        """
        first = umappy.default_pager()
        first.close()
        second = umappy.default_pager()
        assert second is not first
        assert not second.is_closed
        """
    )

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from umappy import limits
from umappy.config import SETTINGS, Config
from umappy.eviction import Fifo


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings of its own, in an environment that sets none, on a machine that can give 1000 bytes."""
    for name in SETTINGS:
        monkeypatch.delenv(f"UMAPPY_{name.upper()}", raising=False)
    monkeypatch.setattr(limits, "find_memory_limit", lambda root: limits.MemoryLimit(1000, root))
    return Config()


def test_config_nothing_set_gives_defaults(config: Config) -> None:
    assert config.memory == 500
    assert (config.page_size, config.direct, config.uffd) == ("auto", "auto", "auto")
    assert config.timeout_seconds == 10.0
    assert config.fillers == "auto"
    assert config.evictors >= 1
    assert os.path.isdir(config.temp_dir)


def test_config_environment_wins_over_default(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {
        "UMAPPY_MEMORY": "4GiB",
        "UMAPPY_FILLERS": "3",
        "UMAPPY_EVICTORS": " 2 ",
        "UMAPPY_PAGE_SIZE": "64KiB",
        "UMAPPY_TIMEOUT_SECONDS": "2.5",
        "UMAPPY_EXIT_TIMEOUT_SECONDS": "30",
        "UMAPPY_DIRECT": "off",
        "UMAPPY_UFFD": "user-mode-only",
        "UMAPPY_MECHANISM": "copy",
        "UMAPPY_READAHEAD": "0",
        "UMAPPY_IO_URING": "0",
        "UMAPPY_POLICY": "fifo",
        "UMAPPY_ZSTD": "zstandard",
        "UMAPPY_TEMP_DIR": str(tmp_path),
    }
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    values = {
        "memory": 4 << 30,
        "fillers": 3,
        "evictors": 2,
        "page_size": 64 << 10,
        "timeout_seconds": 2.5,
        "exit_timeout_seconds": 30.0,
        "direct": False,
        "uffd": "user-mode-only",
        "mechanism": "copy",
        "readahead": False,
        "io_uring": False,
        "policy": Fifo(),
        "zstd": "zstandard",
        "temp_dir": str(tmp_path),
    }
    assert {name: getattr(config, name) for name in SETTINGS} == values


def test_config_attribute_wins_over_environment(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMAPPY_MEMORY", "4GiB")
    config.memory = "1GiB"
    assert config.memory == 1 << 30
    del config.memory
    assert config.memory == 4 << 30


def test_config_keyword_wins_over_attribute(config: Config) -> None:
    config.fillers = 4
    assert config.resolve(Config.fillers, 2) == 2
    assert config.resolve(Config.fillers, None) == 4


def test_config_empty_variable_is_not_set(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMAPPY_UFFD", " ")
    assert config.uffd == "auto"


@pytest.mark.parametrize(
    ("variable", "text", "remedy"),
    [
        ("UMAPPY_MEMORY", "4G", "write '4GiB'"),
        ("UMAPPY_MEMORY", "0", "at least a few pages"),
        ("UMAPPY_FILLERS", "many", "a whole number from 1 to 1024"),
        ("UMAPPY_FILLERS", "0", "a whole number from 1 to 1024"),
        ("UMAPPY_EVICTORS", "65", "a whole number from 1 to 64"),
        ("UMAPPY_PAGE_SIZE", "5000", "a power of two from 4 KiB to 64 MiB"),
        ("UMAPPY_TIMEOUT_SECONDS", "soon", "seconds as a number"),
        ("UMAPPY_TIMEOUT_SECONDS", "inf", "at most 86400 seconds"),
        ("UMAPPY_EXIT_TIMEOUT_SECONDS", "0", "more than 0"),
        ("UMAPPY_DIRECT", "maybe", "True, False or 'auto'"),
        ("UMAPPY_UFFD", "fast", "'device', 'syscall', 'user-mode-only'"),
        ("UMAPPY_MECHANISM", "swap", "'copy', 'move'"),
        ("UMAPPY_IO_URING", "2", "True, False or 'auto'"),
        ("UMAPPY_TEMP_DIR", "/nonexistent/scratch", "a folder that exists"),
    ],
)
def test_config_bad_variable_raises_with_its_name(
    config: Config, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, remedy: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=f"^{variable} in the environment is '{text}'") as raised:
        getattr(config, variable.removeprefix("UMAPPY_").lower())
    assert remedy in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("memory", "4G", ValueError),
        ("memory", 1.5, TypeError),
        ("fillers", 0, ValueError),
        ("fillers", 2.0, TypeError),
        ("fillers", True, TypeError),
        ("page_size", 128 << 20, ValueError),
        ("page_size", 2048, ValueError),
        ("timeout_seconds", -1, ValueError),
        ("timeout_seconds", float("nan"), ValueError),
        ("timeout_seconds", None, TypeError),
        ("direct", None, ValueError),
        ("uffd", True, ValueError),
        ("temp_dir", 7, TypeError),
    ],
)
def test_config_bad_value_raises_and_changes_nothing(
    config: Config, name: str, value: object, kind: type[Exception]
) -> None:
    before = getattr(config, name)
    with pytest.raises(kind, match=rf"^umappy\.config\.{name} is "):
        setattr(config, name, value)
    assert getattr(config, name) == before


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("memory", np.int64(1 << 20), 1 << 20),
        ("fillers", np.int32(4), 4),
        ("page_size", "2MiB", 2 << 20),
        ("page_size", "auto", "auto"),
        ("timeout_seconds", 3, 3.0),
        ("direct", True, True),
        ("uffd", "syscall", "syscall"),
        ("io_uring", True, True),
    ],
)
def test_config_good_value_is_read(config: Config, name: str, value: object, read: object) -> None:
    setattr(config, name, value)
    assert getattr(config, name) == read


def test_config_temp_dir_pathlike_gives_absolute_str(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config.temp_dir = Path()
    assert config.temp_dir == str(tmp_path)


def test_config_temp_dir_default_follows_tmpdir(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert config.temp_dir == str(tmp_path)


def test_config_unknown_name_raises_with_the_names_there_are(config: Config) -> None:
    with pytest.raises(AttributeError, match=r"no setting 'memmory'; there are memory, fillers"):
        config.memmory = 1


def test_config_frozen_raises_naming_the_holder(config: Config) -> None:
    config.memory = "1GiB"
    config.freeze("the default pager")
    with pytest.raises(RuntimeError, match=r"^umappy\.config\.memory cannot change any more: the default pager has"):
        config.memory = "2GiB"
    with pytest.raises(RuntimeError, match="the default pager"):
        del config.memory
    assert config.memory == 1 << 30


def test_config_thawed_can_change_again(config: Config) -> None:
    config.freeze("the default pager")
    config.thaw()
    config.memory = "2GiB"
    assert config.memory == 2 << 30


def test_config_repr_names_every_setting(config: Config) -> None:
    assert all(f"{name}=" in repr(config) for name in SETTINGS)

"""Settings, and where they come from: keyword > `umappy.config` > `UMAPPY_*` in the environment > default.

Each setting is one attribute of `Config`: how its value is read, and its default. Values are checked where they are
given, so a wrong one is reported at the assignment, or, from the environment, with the variable's name. The default
pager takes its settings when it is made; from then on a change would not be heeded, so it raises.
"""

import math
import os
import tempfile
from collections.abc import Callable
from typing import Generic, Literal, Self, SupportsIndex, TypeVar, cast, overload

from umappy import limits
from umappy.eviction import Auto, Policy, read_policy
from umappy.sizes import format_size, parse_size

Direct = bool | Literal["auto"]
Uffd = Literal["auto", "device", "syscall", "user-mode-only"]
Mechanism = Literal["auto", "copy", "move"]
ReadAhead = bool | Literal["auto"]
Fillers = int | Literal["auto"]
IoUring = bool | Literal["auto"]
PageSize = int | Literal["auto"]
ZstdSource = Literal["auto", "system", "zstandard"]

Value = TypeVar("Value")
Given = TypeVar("Given")

PAGE_SIZE_MIN = 4 << 10
PAGE_SIZE_MAX = 64 << 20
FILLERS_LEAST, FILLERS_MOST = 8, 32
FILLER_MEMORY = 12 << 20
FILLERS_MAX = 1024
EVICTORS_DEFAULT = 2
EVICTORS_MAX = 64
TIMEOUT_SECONDS_MAX = 24 * 3600.0


def read_memory(value: object, name: str) -> int:
    """Bytes from an int, a str such as "4GiB", or "auto": half of what the cgroup or the machine can give."""
    if value == "auto":
        return limits.default_memory()
    count = parse_size(cast("SupportsIndex | str", value), name)
    if count == 0:
        raise ValueError(f"{name} is {value!r}: the budget must hold at least a few pages; leave it out for 'auto'")
    return count


def read_page_size(value: object, name: str) -> PageSize:
    """Bytes, a power of two from 4 KiB to 64 MiB; or "auto": chosen by the region."""
    if value == "auto":
        return "auto"
    count = parse_size(cast("SupportsIndex | str", value), name)
    if not PAGE_SIZE_MIN <= count <= PAGE_SIZE_MAX or count & (count - 1):
        raise ValueError(
            f"{name} is {value!r}: wants a power of two from {format_size(PAGE_SIZE_MIN)} to "
            f"{format_size(PAGE_SIZE_MAX)}, or 'auto'"
        )
    return count


def read_count(least: int, most: int) -> Callable[[object, str], int]:
    """A reader of whole numbers from `least` to `most`."""

    def read(value: object, name: str) -> int:
        count: int | None = None
        if isinstance(value, str) and value.strip().isdecimal():
            count = int(value)
        elif hasattr(value, "__index__") and not isinstance(value, bool):
            count = value.__index__()
        elif not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}: wants a whole number from {least} to {most}")
        if count is None or not least <= count <= most:
            raise ValueError(f"{name} is {value!r}: wants a whole number from {least} to {most}")
        return count

    return read


def read_fillers(value: object, name: str) -> Fillers:
    """A whole number, or "auto": chosen by the budget."""
    return "auto" if value == "auto" else read_count(1, FILLERS_MAX)(value, name)


def choose_fillers(memory: int) -> int:
    """As many as keep a disk, or a store a millisecond away, busy; each takes its share of the budget."""
    return min(max(memory // FILLER_MEMORY, FILLERS_LEAST), FILLERS_MOST)


def read_seconds(value: object, name: str) -> float:
    """Seconds above 0, a day at most: every wait has a deadline."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{name} is {value!r}: wants seconds as a number")
    try:
        seconds = float(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}: wants seconds as a number") from None
    if not math.isfinite(seconds) or not 0 < seconds <= TIMEOUT_SECONDS_MAX:
        raise ValueError(f"{name} is {value!r}: wants more than 0 and at most {TIMEOUT_SECONDS_MAX:.0f} seconds")
    return seconds


def read_switch(value: object, name: str) -> bool | Literal["auto"]:
    """True, False or "auto"; from text also 1, 0, yes, no, on, off."""
    if isinstance(value, bool):
        return value
    words: dict[object, bool | Literal["auto"]] = {"auto": "auto"}
    words |= dict.fromkeys(("true", "1", "yes", "on"), True)
    words |= dict.fromkeys(("false", "0", "no", "off"), False)
    key = value.strip().lower() if isinstance(value, str) else None
    if key not in words:
        raise ValueError(f"{name} is {value!r}: wants True, False or 'auto'")
    return words[key]


def read_choice(*choices: str) -> Callable[[object, str], str]:
    """A reader of one of these words."""

    def read(value: object, name: str) -> str:
        if value not in choices:
            raise ValueError(f"{name} is {value!r}: wants one of {', '.join(map(repr, choices))}")
        return str(value)

    return read


read_uffd = cast(Callable[[object, str], Uffd], read_choice("auto", "device", "syscall", "user-mode-only"))
read_mechanism = cast(Callable[[object, str], Mechanism], read_choice("auto", "copy", "move"))
read_zstd = cast(Callable[[object, str], ZstdSource], read_choice("auto", "system", "zstandard"))


def read_temp_dir(value: object, name: str) -> str:
    """A folder that exists, as str or PathLike."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {value!r}: wants a folder's path")
    path = os.fsdecode(value)
    if not os.path.isdir(path):
        raise ValueError(f"{name} is {path!r}: wants a folder that exists")
    return os.path.abspath(path)


def find_temp_dir() -> str:
    """TMPDIR where the user set it, else /var/tmp, which unlike /tmp is not memory; else Python's own choice."""
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK | os.X_OK):
        return "/var/tmp"
    return tempfile.gettempdir()


class Setting(Generic[Value, Given]):
    """One setting: how its value is read, from code and environment alike, and its default, found when asked for."""

    def __init__(self, read: Callable[[object, str], Value], default: Callable[[], Value]) -> None:
        self._read = read
        self._default = default

    def __set_name__(self, owner: type["Config"], name: str) -> None:
        self.name = name
        self.variable = f"UMAPPY_{name.upper()}"

    @overload
    def __get__(self, config: None, owner: type["Config"]) -> Self: ...
    @overload
    def __get__(self, config: "Config", owner: type["Config"]) -> Value: ...
    def __get__(self, config: "Config | None", owner: type["Config"]) -> Self | Value:
        return self if config is None else self.resolve(config, None)

    def __set__(self, config: "Config", given: Given) -> None:
        config.check_open(self.name)
        config._given[self.name] = self._read(given, f"umappy.config.{self.name}")

    def __delete__(self, config: "Config") -> None:
        config.check_open(self.name)
        config._given.pop(self.name, None)

    def resolve(self, config: "Config", keyword: Given | None) -> Value:
        if keyword is not None:
            return self._read(keyword, self.name)
        if self.name in config._given:
            return cast(Value, config._given[self.name])
        text = os.environ.get(self.variable, "").strip()
        if text:
            return self._read(text, f"{self.variable} in the environment")
        return self._default()


class Config:
    """The settings of this process; `umappy.config` is the one there is.

    Reading an attribute gives the value that holds now; assigning sets it, `del` takes that back. Assigning raises
    ValueError or TypeError for a value that is none, AttributeError for a name that is none, RuntimeError once the
    default pager lives.
    """

    __slots__ = ("_frozen_by", "_given")

    memory = Setting[int, SupportsIndex | str](read_memory, limits.default_memory)
    """The budget in bytes; set as int, "4GiB" or "auto", half of what the cgroup or the machine can give (default)."""
    fillers = Setting[Fillers, SupportsIndex | str](read_fillers, lambda: "auto")
    """Threads that fill pages, or "auto": by the budget, from 8 to 32. One of them waits for faults, so n of them read
    n - 1 pages at once; one does both."""
    evictors = Setting[int, SupportsIndex](read_count(1, EVICTORS_MAX), lambda: EVICTORS_DEFAULT)
    """Threads that evict pages."""
    page_size = Setting[PageSize, SupportsIndex | str](read_page_size, lambda: "auto")
    """Bytes, a power of two from 4 KiB to 64 MiB, or "auto"."""
    timeout_seconds = Setting[float, float](read_seconds, lambda: 10.0)
    """How long a failing store is retried and a fault waits for memory."""
    exit_timeout_seconds = Setting[float, float](read_seconds, lambda: 60.0)
    """How long the last flush may take when the interpreter ends."""
    direct = Setting[Direct, Direct](read_switch, lambda: "auto")
    """O_DIRECT for files: True, False or "auto", where the file system and the alignment allow it."""
    uffd = Setting[Uffd, Uffd](read_uffd, lambda: "auto")
    """How userfaultfd is opened: "device", "syscall", "user-mode-only", or "auto", which tries them in this order."""
    mechanism = Setting[Mechanism, Mechanism](read_mechanism, lambda: "auto")
    """How large runs get into memory: "copy", "move" (Linux 6.8), or "auto", what is faster here."""
    readahead = Setting[ReadAhead, ReadAhead](read_switch, lambda: "auto")
    """Whether regions find streams in their faults and read ahead of them; "auto" is True."""
    policy = Setting[Policy, Policy | str](read_policy, Auto)
    """Which pages leave first: "auto", "fifo", "second_chance", "s3fifo", "mru", or one of `umappy.eviction`."""
    io_uring = Setting[IoUring, IoUring](read_switch, lambda: "auto")
    """Many reads in flight from one thread (Linux 6.1): True, False, or "auto", where the kernel allows it."""
    zstd = Setting[ZstdSource, ZstdSource](read_zstd, lambda: "auto")
    """Which libzstd compresses: the "system"'s, the one inside the package "zstandard", or "auto", the first that there
    is of these. What the process found at first use stays."""
    temp_dir = Setting[str, str | os.PathLike[str]](read_temp_dir, find_temp_dir)
    """The folder where scratch files go."""

    _given: dict[str, object]
    _frozen_by: str | None

    def __init__(self) -> None:
        self._given = {}
        self._frozen_by = None

    def __setattr__(self, name: str, value: object) -> None:
        if name not in Config.__slots__ and name not in SETTINGS:
            raise AttributeError(f"umappy.config has no setting {name!r}; there are {', '.join(SETTINGS)}", name=name)
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={getattr(self, name)!r}' for name in SETTINGS)})"

    def resolve(self, setting: Setting[Value, Given], keyword: Given | None) -> Value:
        """Returns the value for a call that was given `keyword` (None: not given), read and checked.

        `setting` is an attribute of the class: `config.resolve(Config.memory, memory)`.
        """
        return setting.resolve(self, keyword)

    def freeze(self, holder: str) -> None:
        """From now on changes raise, naming `holder`, the one that took the settings ("the default pager")."""
        self._frozen_by = holder

    def thaw(self) -> None:
        """Allows changes again: what `freeze` was called for is gone."""
        self._frozen_by = None

    def check_open(self, name: str) -> None:
        if self._frozen_by is not None:
            raise RuntimeError(
                f"umappy.config.{name} cannot change any more: {self._frozen_by} has taken its settings. "
                "Set it before the first use, or make a umappy.Pager with settings of its own"
            )


SETTINGS = tuple(name for name, value in vars(Config).items() if isinstance(value, Setting))

config = Config()

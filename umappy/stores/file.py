"""`FileStore`: flat bytes in a file, or in several that follow one another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, SupportsIndex, TypeAlias

from umappy._engine import ffi, lib
from umappy.sizes import format_size, parse_size
from umappy.stores.native import NativeStore, make_open_error

if TYPE_CHECKING:
    from umappy._engine import um_store

Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Size: TypeAlias = SupportsIndex | str
Part: TypeAlias = Path | tuple[Path, Size | None]
Direct: TypeAlias = bool | Literal["auto"]

MODES = {"r": "r", "readonly": "r", "r+": "r+", "readwrite": "r+", "w+": "w+", "write": "w+", "x": "x"}
TO_END = (1 << 64) - 1
DIRECT = {"auto": -1, False: 0, True: 1}


class FileStore(NativeStore):
    """Any flat bytes in a file or on a block device: raw, `.npy` data, HDF5 contiguous, safetensors.

    `path` is one path, or a list of parts that follow one another in one address space, each a path or a pair of path
    and size (None: to the end of its file).

    `mode` is "r" (read), "r+" (read and write; a larger `size` makes the file longer), "w+" (create or empty) or "x"
    (create, fail if it exists), or numpy's long name of it. New bytes are a hole: they read as zeros and take no space.

    `offset` is the bytes before the first one of the store in the (first) file; `size` how many the store has, None for
    what the file holds. Both take ints or "4GiB".

    `direct` says whether to go past the page cache (O_DIRECT): "auto" where the file system and the alignment of
    `offset` and parts allow it, True to fail elsewhere, False never. The attribute says what is in force.

    With `lock`, a writer excludes other writers, in this process and others; readers are never excluded.

    Raises ValueError for sizes, offsets and modes that do not fit the file, and StoreError otherwise: NotFound, Exists,
    Permission, Locked, Full. When it raises, files that it created are gone again.
    """

    mode: Literal["r", "r+", "w+", "x"]
    paths: tuple[str, ...]
    """Absolute, in order."""
    part_sizes: tuple[int, ...]
    """Bytes of each part."""
    offset: int

    def __init__(
        self,
        path: Path | Sequence[Part],
        mode: str = "r",
        *,
        offset: Size = 0,
        size: Size | None = None,
        direct: Direct = "auto",
        lock: bool = True,
    ) -> None:
        parts = _parse_parts(path)
        self.mode = parse_mode(mode)
        self.paths = tuple(os.path.abspath(os.fsdecode(part)) for part, _ in parts)
        self.offset = parse_size(offset, "offset")
        self._lock = lock
        self._direct_asked = _parse_direct(direct)
        handle = self._open(
            [TO_END if wanted is None else parse_size(wanted, "size of a part") for _, wanted in parts],
            TO_END if size is None else parse_size(size),
        )
        super().__init__(handle)
        self.part_sizes = tuple(lib.um_file_store_part_size(handle, i) for i in range(len(parts)))
        self._direct = bool(lib.um_file_store_is_direct(handle))

    @property
    def path(self) -> str:
        """Absolute path of the (first) file."""
        return self.paths[0]

    @property
    def direct(self) -> bool:
        """Whether whole aligned blocks of every part go past the page cache."""
        handle = self._handle
        return self._direct if handle is None else bool(lib.um_file_store_is_direct(handle))

    def __repr__(self) -> str:
        name = repr(self.path) if len(self.paths) == 1 else f"{self.path!r} and {len(self.paths) - 1} more"
        if not hasattr(self, "size"):
            return f"<FileStore {name}, not open>"
        state = ", closed" if self.closed else ""
        return f"<FileStore {name}, mode {self.mode!r}, {format_size(self.size)}{state}>"

    def __reduce__(self) -> tuple[object, ...]:
        """The recipe: the same bytes, opened for reading."""
        parts = list(zip(self.paths, self.part_sizes, strict=True))
        return _open_again, (parts, self.offset, self._direct_asked)

    def _open(self, sizes: list[int], size: int) -> um_store:
        # cffi copies what pointers point to from no list: the paths must outlive the call.
        paths = [ffi.new("char[]", os.fsencode(path)) for path in self.paths]
        parts = ffi.new("um_file_part[]", [{"path": p, "size": s} for p, s in zip(paths, sizes, strict=True)])
        options = ffi.new(
            "um_file_options *",
            {
                "parts": parts,
                "part_count": len(paths),
                "writable": self.mode != "r",
                "create": self.mode in {"w+", "x"},
                "truncate": self.mode == "w+",
                "exclusive": self.mode == "x",
                "direct": DIRECT[self._direct_asked],
                "lock": self._lock,
                "offset": self.offset,
                "size": size,
            },
        )
        store, record = ffi.new("um_store **"), ffi.new("um_error *")
        if lib.um_file_store_open(options, store, record) < 0:
            raise make_open_error(record)
        return store[0]


def _open_again(parts: list[Part], offset: int, direct: Direct) -> FileStore:
    return FileStore(parts, "r", offset=offset, direct=direct)


def _parse_parts(path: Path | Sequence[Part]) -> list[tuple[Path, Size | None]]:
    if isinstance(path, str | bytes | os.PathLike):
        return [(check_path(path), None)]
    if not isinstance(path, list):
        raise TypeError(f"path is {path!r}: wants a path, or a list of paths or pairs (path, size)")
    if not path:
        raise ValueError("path is an empty list: wants at least one part")
    parts = [part if isinstance(part, tuple) else (part, None) for part in path]
    for part in parts:
        if len(part) != 2:
            raise TypeError(f"part is {part!r}: wants a path or a pair (path, size)")
    return [(check_path(part), size) for part, size in parts]


def check_path(path: Path) -> Path:
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"path is {path!r}: wants a str, bytes or os.PathLike")
    raw = os.fsencode(path)
    if not raw:
        raise ValueError("path is empty: wants the path of a file")
    if b"\0" in raw:
        raise ValueError(f"path is {path!r}: no path can have a null byte")
    return path


def parse_mode(mode: str) -> Literal["r", "r+", "w+", "x"]:
    if not isinstance(mode, str):
        raise TypeError(f"mode is {mode!r}: wants a str, one of {', '.join(map(repr, MODES))}")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: wants one of {', '.join(map(repr, MODES))}")
    return MODES[mode]  # type: ignore[return-value]


def _parse_direct(direct: Direct) -> Direct:
    if direct not in DIRECT:
        raise ValueError(f"direct is {direct!r}: wants True, False or 'auto'")
    return direct

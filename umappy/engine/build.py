"""Builds `umappy._engine`, the bindings of the C engine, with cffi in API mode.

setuptools runs this file through `cffi_modules` in setup.py, from the root of the project. The declarations come from
umappy.h, between its two cffi marks, so that C and Python cannot drift apart. `UMAPPY_DEBUG=1` in the environment
builds with the engine's invariants checked.
"""

import os
from pathlib import Path

import cffi

ENGINE = Path(__file__).resolve().parent
BEGIN, END = "/* cffi: begin */", "/* cffi: end */"

RELEASE_FLAGS = ("-O2",)
DEBUG_FLAGS = ("-O1", "-UNDEBUG", "-DUM_DEBUG=1")
COMMON_FLAGS = ("-std=gnu11", "-g", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow", "-pthread")


def read_declarations(header: Path) -> str:
    """Returns the part of the header that cffi may see; ValueError when its marks are not there once, in order."""
    text = header.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{header}: wants one line {BEGIN!r} and after it one line {END!r}")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def list_files(pattern: str) -> list[str]:
    """Paths from the root of the project: setuptools takes no absolute ones."""
    return sorted(os.path.relpath(path) for path in ENGINE.glob(pattern))


def make_builder() -> cffi.FFI:
    flags = [*COMMON_FLAGS, *(DEBUG_FLAGS if os.environ.get("UMAPPY_DEBUG") == "1" else RELEASE_FLAGS)]
    builder = cffi.FFI()
    builder.cdef(read_declarations(ENGINE / "umappy.h"))
    builder.set_source(
        "umappy._engine",
        # setuptools does not rebuild when only flags change; a generated source that names them makes it.
        f'/* {" ".join(flags)} */\n#include "umappy.h"\n',
        sources=list_files("*.c"),
        depends=[*list_files("*.h"), os.path.relpath(__file__)],
        include_dirs=[os.path.relpath(ENGINE)],
        extra_compile_args=flags,
        extra_link_args=["-pthread"],
        libraries=["dl"],
    )
    return builder


ffibuilder = make_builder()

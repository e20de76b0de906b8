"""_engine.pyi is written by hand; these hold it against the module that cffi made."""

import ast
from pathlib import Path

import pytest

from umappy._engine import ffi, lib

STUB = ast.parse((Path(__file__).parent.parent / "umappy/_engine.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
METHODS = {node.name: node for node in CLASSES["Lib"].body if isinstance(node, ast.FunctionDef)}
FUNCTIONS = sorted(name for name in dir(lib) if callable(getattr(lib, name)))


def list_fields(name: str) -> set[str]:
    fields = set()
    for node in CLASSES[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            fields.add(node.name)
    return fields


def test_stub_functions_are_those_of_the_engine() -> None:
    assert sorted(METHODS) == FUNCTIONS


def test_stub_constants_are_those_of_the_engine() -> None:
    constants = {name for name in dir(lib) if name not in FUNCTIONS}
    assert list_fields("Lib") - set(METHODS) == constants


@pytest.mark.parametrize("name", FUNCTIONS)
def test_stub_function_takes_and_returns_what_the_engine_does(name: str) -> None:
    function, stub = ffi.typeof(getattr(lib, name)), METHODS[name].args
    taken = [ast.unparse(argument.annotation) for argument in stub.posonlyargs[1:]]
    assert taken == [spell(argument) for argument in function.args]
    assert ast.unparse(METHODS[name].returns) == spell(function.result)


@pytest.mark.parametrize("name", ["um_error", "um_stats"])
def test_stub_struct_has_the_fields_of_the_engine(name: str) -> None:
    assert list_fields(name) == {field for field, _ in ffi.typeof(name).fields}


def spell(kind) -> str:
    """How the stub writes a C type."""
    if kind.kind == "void":
        return "None"
    if kind.kind == "primitive":
        return "int"
    target = kind.item
    if target.kind == "pointer":
        return f"Out[{spell(target)}]"
    if target.kind == "struct":
        return target.cname.removeprefix("struct ")
    return "Out[int]" if target.cname == "uint64_t" else "Memory"

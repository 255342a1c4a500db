"""Limits of size: lines of a file, lines of a function, parameters of a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "configs", "deployment", "mediffusion_core", "server", "simulations")
LINES_OF_A_FILE = 350
LINES_OF_A_FUNCTION = 60
PARAMETERS = 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def parameters(function: Function) -> int:
    """Number of parameters, without `self` and `cls`."""
    given = function.args
    named = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    rest = [one for one in (given.vararg, given.kwarg) if one is not None]
    return len([name for name in named if name not in ("self", "cls")]) + len(rest)


def commands(tree: ast.AST) -> set[str]:
    """Names of Typer commands: `@app.command()` above a function, or `app.command()(function)`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, Function):
            found |= {node.name for one in node.decorator_list if is_command(one)}
        elif isinstance(node, ast.Call) and is_command(node.func):
            found |= {one.id for one in node.args if isinstance(one, ast.Name)}
    return found


def is_command(node: ast.expr) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr == "command"


def is_config_constructor(function: Function) -> bool:
    """diffusers writes each parameter of such a constructor as one key of `config.json`."""
    return any(ast.unparse(one) == "register_to_config" for one in function.decorator_list)


def too_many(source: str) -> list[str]:
    """Functions with too many parameters, except those whose parameters are options or keys."""
    tree = ast.parse(source)
    exempt = commands(tree)
    return [
        f"{one.name}: {parameters(one)} parameters"
        for one in functions(tree)
        if parameters(one) > PARAMETERS
        and one.name not in exempt
        and not is_config_constructor(one)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_functions_are_short(package: str) -> None:
    long = []
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT)
        source = path.read_text(encoding="utf-8")
        if (lines := len(source.splitlines())) > LINES_OF_A_FILE:
            long.append(f"{name}: {lines} lines")
        for one in functions(ast.parse(source)):
            assert one.end_lineno is not None
            if (lines := one.end_lineno - one.lineno + 1) > LINES_OF_A_FUNCTION:
                long.append(f"{name}: {one.name} has {lines} lines")
        long += [f"{name}: {found}" for found in too_many(source)]
    assert long == []


def test_a_long_list_of_parameters_is_found() -> None:
    eight = "a, b, c, d, e, f, *, g, h"
    assert too_many(f"def f({eight}): ...") == ["f: 8 parameters"]
    assert too_many(f"class A:\n def f(self, {eight}): ...") == ["f: 8 parameters"]
    assert too_many("class A:\n def f(self, a, b, c, d, e, f, *g): ...") == []
    assert too_many(f"@app.command(epilog='x')\ndef f({eight}): ...") == []
    assert too_many(f"def f({eight}): ...\napp.command()(f)") == []
    assert too_many(f"@other\ndef f({eight}): ...\nother(f)") == ["f: 8 parameters"]

"""The arrows between the packages: who may import whom."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"mediffusion_core", "configs", "client", "server", "deployment", "simulations"}
MAY_IMPORT = {
    "mediffusion_core": set(),
    "configs": {"mediffusion_core"},
    "client": {"mediffusion_core", "configs"},
    "server": {"mediffusion_core", "configs"},
    "deployment": {"mediffusion_core"},
    "simulations": {"mediffusion_core", "configs", "client", "server", "deployment"},
}
ROOMS = (
    {"common"},
    {"settings"},
    {"messaging", "diffusion.process", "diffusion.losses"},
    {"data"},
    {"models"},
    {"diffusion"},
    {"counterfactuals"},
    {"inference"},
    {"training"},
    {"privacy"},
    {"evaluation"},
    {"run_io"},
    {"reporting"},
    {"run_io.pipeline", "run_io.export", "run_io.any_model"},
)
"""Rooms of the core, from the ground up: a room imports from itself and from those before it.

The longest name counts. The exported pipeline stands above the report, since it carries a card.
"""
FEDERATED = {"flwr", "ray", "hydra", "omegaconf", "typer", "rich"}
OPTIONAL = {"torchvision", "medmnist", "lpips", "sklearn", "pandas"}
SLOW = {"torchmetrics", "monai", "captum", "tensorboardX", "mlflow", "wandb"}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that a module imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which package is meant"
            assert node.module is not None
            yield node.module


def imports(package: str) -> dict[str, set[str]]:
    """For each file of a package the top-level names it imports."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no files in {package}"
    return {
        str(file.relative_to(ROOT)): {
            name.partition(".")[0] for name in imported_modules(ast.parse(file.read_text()))
        }
        for file in files
    }


def test_the_project_is_described_once() -> None:
    """The installed package carries the repository's own pyproject.toml, for Flower."""
    assert (ROOT / "simulations" / "pyproject.toml").samefile(ROOT / "pyproject.toml")


def test_the_images_have_the_torch_of_the_project() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    version = re.search(r'"torch~=([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert f"ARG TORCH={version[1]}\n" in dockerfile


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_dependencies_point_one_way(package: str) -> None:
    forbidden = PACKAGES - MAY_IMPORT[package] - {package}
    found = {file: names & forbidden for file, names in imports(package).items()}
    assert {file: names for file, names in found.items() if names} == {}


def test_the_core_imports_no_federation() -> None:
    found = {file: names & FEDERATED for file, names in imports("mediffusion_core").items()}
    assert {file: names for file, names in found.items() if names} == {}


def room(module: str) -> int:
    """How high a module of the core stands."""
    parts = module.split(".")[1:]
    for length in range(len(parts), 0, -1):
        for height, names in enumerate(ROOMS):
            if ".".join(parts[:length]) in names:
                return height
    raise AssertionError(f"{module} stands in no room of ROOMS")


def test_rooms_of_the_core_import_only_downwards() -> None:
    """At the top of a module, inside a function, and for type checkers alone."""
    upwards = []
    for name, file in modules("mediffusion_core").items():
        if name == "mediffusion_core":
            continue
        for other in targets(ast.walk(ast.parse(file.read_text()))):
            if other.startswith("mediffusion_core.") and room(other) > room(name):
                upwards.append(f"{name} imports {other}")
    assert upwards == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports that are made when a module is loaded; one inside a function closes no circle."""
    graph = {
        name: {other for other in targets(loaded(ast.parse(file.read_text()).body))} - {name}
        for package in PACKAGES
        for name, file in modules(package).items()
    }
    while free := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in free}
    assert {name: sorted(others & graph.keys()) for name, others in graph.items()} == {}


@cache
def modules(package: str) -> dict[str, Path]:
    """Files of a package by the name that they are imported by."""
    files = (ROOT / package).rglob("*.py")
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def targets(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Modules of the project that some statements import: `from a import b` may name a.b."""
    known = {name for package in PACKAGES for name in modules(package)}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in inner)


def loaded(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is loaded, those for type checkers left out."""
    for node in body:
        yield node
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in ("body", "orelse", "finalbody"):
            runs = not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if runs and not (checked and part == "body"):
                yield from loaded(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from loaded(handler.body)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_package_needs_an_optional_dependency(package: str) -> None:
    found = {file: names & OPTIONAL for file, names in imports(package).items()}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_slow_packages_are_imported_inside_functions(package: str) -> None:
    """Or a command's `--help` would wait for it."""
    found = {
        (file, name)
        for file in (ROOT / package).rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_modules(node)
        if name.partition(".")[0] in SLOW
    }
    assert found == set()


def test_all_forms_of_imports_are_found() -> None:
    source = "import flwr.app\ndef f():\n    from ray.util import g\n    import hydra as h\n"
    assert set(imported_modules(ast.parse(source))) == {"flwr.app", "ray.util", "hydra"}


def test_core_is_importable_without_the_federated_extras() -> None:
    """No import of the core imports Flower, Ray or Hydra in turn."""
    import subprocess

    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted((ROOT / "mediffusion_core").rglob("*.py"))
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(FEDERATED)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

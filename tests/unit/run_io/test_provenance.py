"""The commit that made a result, or none rather than a wrong one."""

import subprocess
from pathlib import Path

import pytest

from mediffusion_core.run_io import provenance
from mediffusion_core.run_io.provenance import COMMIT_VARIABLE, current_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An untracked file in a repository with one commit, as the running module."""
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("ignored\n")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    path = tmp_path / "package" / "module.py"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(provenance, "__file__", str(path))
    return path


def test_a_package_inside_another_repository_has_no_commit(file: Path) -> None:
    assert current_commit() is None


def test_a_checkout_has_the_commit_that_stands_there(file: Path) -> None:
    git(file.parent, "add", file.name)
    git(file.parent, "commit", "--quiet", "--message", "second")
    (file.parent / "new.txt").touch()
    assert current_commit() == git(file.parent, "rev-parse", "HEAD")


def test_a_changed_checkout_is_marked(file: Path) -> None:
    git(file.parent, "add", file.name)
    git(file.parent, "commit", "--quiet", "--message", "second")
    (file.parents[1] / ".gitignore").write_text("changed, and outside the package\n")
    assert current_commit() == f"{git(file.parent, 'rev-parse', 'HEAD')}-dirty"


def test_a_named_commit_goes_before_that_of_the_checkout(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "abc")
    assert current_commit() == "abc"


def test_outside_of_any_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "module.py"))
    assert current_commit() is None

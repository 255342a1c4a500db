"""The command line: what goes wrong is one line and an exit status, never a traceback."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from simulations.cli import inference, main


def failed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["fed-mediffusion", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.main()
    return caught.value.code


def test_a_path_that_cannot_be_written_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(inference, "predict_folder", lambda *_: tmp_path.open("w"))
    assert failed(monkeypatch, "predict", "run", "images", "--output", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"fed-mediffusion: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError("the disk went away"), "the disk went away"),
        (OSError(), "OSError"),
    ],
)
def test_an_error_of_the_system_without_a_path_has_a_reason_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, line: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(inference, "predict_folder", fail)
    assert failed(monkeypatch, "predict", "run", "images") == 2
    assert capsys.readouterr().err == f"fed-mediffusion: {line}\n"


def test_a_file_is_no_folder_for_a_run(
    tiny: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.touch()
    store = f"data.store={tmp_path / 'store'}"
    assert failed(monkeypatch, "simulate", *tiny, store, f"run.folder={file}") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fed-mediffusion: run folder {file} is not a folder")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "数据"), ("latin-1", r"\u6570\u636e")])
def test_a_name_is_printed_in_any_terminal(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["fed-mediffusion", "settings", "data.root=/数据"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    assert f"root: /{shown}" in terminal.buffer.getvalue().decode(encoding)

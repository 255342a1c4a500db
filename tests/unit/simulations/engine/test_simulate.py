"""`fed-mediffusion simulate` before and after the run itself."""

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.checkpoints import save_checkpoint
from mediffusion_core.run_io.run_folder import RunFolder
from simulations.engine import simulate as module
from simulations.engine.simulate import simulate

Overrides = tuple[str, ...]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    """Overrides and folder of what would have been launched; nothing is."""
    found: list[tuple[list[str], Path]] = []

    def note(_: object, __: str, overrides: Sequence[str], folder: Path, *___: object) -> int:
        found.append((list(overrides), folder))
        return 0

    monkeypatch.setattr(module, "_launch", note)
    return found


def test_every_path_of_a_run_is_absolute(
    tiny: Overrides,
    launched: list[tuple[list[str], Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    simulate("config", [*tiny, "run.folder=a/run", "data.store='the store'"], None)
    [(overrides, folder)] = launched
    settings = compose("config", overrides)
    assert folder == settings.run.folder == tmp_path / "a" / "run"
    assert settings.data.store == tmp_path / "the store"


def test_a_run_is_resumed_as_it_was_launched(
    tiny: Overrides, launched: list[tuple[list[str], Path]], tmp_path: Path
) -> None:
    given = [*tiny, f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}"]
    simulate("config", given, None)
    simulate("config", [], tmp_path / "run")
    assert launched[0] == launched[1]


def test_a_run_whose_folder_was_moved_goes_on_where_it_is_now(
    tiny: Overrides, launched: list[tuple[list[str], Path]], tmp_path: Path
) -> None:
    given = [*tiny, f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}"]
    simulate("config", given, None)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    simulate("config", [], tmp_path / "moved")
    overrides, folder = launched[1]
    assert folder == compose("config", overrides).run.folder == tmp_path / "moved"


def test_what_is_damaged_is_said_before_a_process_is_started(
    tiny: Overrides,
    launched: list[tuple[list[str], Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [*tiny, f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}"]
    simulate("config", given, None)
    root = tmp_path / "run" / "checkpoints"
    for number in (1, 2):
        save_checkpoint(root, number, "joint", number, {}, {})
    (root / "000002-joint-2" / "state.json").write_text("{}")
    simulate("config", [], tmp_path / "run")
    [line] = [one for one in capsys.readouterr().out.splitlines() if "damaged" in one]
    assert "000002-joint-2" in line and line.endswith("000001-joint-1, after joint round 1")
    (root / "000001-joint-1" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"all checkpoints .* are damaged"):
        simulate("config", [], tmp_path / "run")
    assert len(launched) == 2


def test_a_folder_in_which_another_process_runs_is_refused(
    tiny: Overrides, launched: list[tuple[list[str], Path]], tmp_path: Path
) -> None:
    given = [*tiny, f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}"]
    simulate("config", given, None)
    before = (tmp_path / "run" / "launch.json").read_text()
    with RunFolder(tmp_path / "run").held():
        with pytest.raises(UserError, match="another process runs in"):
            simulate("config", given, None)
        with pytest.raises(UserError, match="another process runs in"):
            simulate("config", [], tmp_path / "run")
    assert len(launched) == 1
    assert (tmp_path / "run" / "launch.json").read_text() == before
    simulate("config", [], tmp_path / "run")
    assert len(launched) == 2


def test_the_folder_is_held_while_the_run_lasts(
    tiny: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: object, __: str, ___: object, folder: Path, *____: object) -> int:
        with pytest.raises(UserError, match="another process"), RunFolder(folder).launched():
            pass
        with RunFolder(folder).held():  # as the server does, which is another process
            pass
        return 0

    monkeypatch.setattr(module, "_launch", look)
    given = [*tiny, f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}"]
    assert simulate("config", given, None) == 0


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    together = threading.Barrier(3)

    def choose(_: int) -> Path:
        together.wait()
        return module._new_folder()

    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(choose, range(3)))
    assert len(folders) == 3 and all(folder.is_dir() for folder in folders)


def test_an_extractor_that_cannot_be_built_costs_no_run(
    tiny: Overrides, launched: list[tuple[list[str], Path]], tmp_path: Path
) -> None:
    weights = f"evaluation.inception_weights={tmp_path / 'absent.pth'}"
    given = [*tiny, f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"absent\.pth does not exist"):
        simulate("config", [*given, "evaluation.extractor=inception", weights], None)
    assert launched == []
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_data_leaves_no_folder(
    launched: list[tuple[list[str], Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="absent"):
        simulate("config", ["data=isic2019", "data.root=absent"], None)
    assert launched == []
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes no settings"):
        simulate("config", ["seed=2"], tmp_path)


@pytest.mark.parametrize("text", [None, "{", '{"config_name": "config"}'])
def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "launch.json").write_text(text)
    with pytest.raises(UserError, match="holds no run of simulate"):
        simulate("config", [], tmp_path)

"""Our changes within Flower: they fit the installed one, and say so where they do not."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr.supercore.corestate.in_memory_corestate as in_memory
import flwr.supercore.corestate.sql_corestate as sql
import flwr.superlink.main as superlink
import flwr.supernode.nodestate.nodestate_factory as factory
import flwr.supernode.runtime.run_clientapp as runtime
import flwr.supernode.start_client_internal as loop
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run

from deployment import flower_patches
from deployment.signing import BundleRefusedError, Settings

CHANGED = (
    (in_memory, "HEARTBEAT_DEFAULT_INTERVAL"),
    (sql, "HEARTBEAT_DEFAULT_INTERVAL"),
    (superlink, "create_app"),
    (factory, "InMemoryNodeState"),
    (loop, "_pull_and_store_message"),
    (loop, "_insert_message"),
    (runtime, "pull_task_input"),
    (runtime, "install_from_fab"),
)
SETTINGS = {"overrides": "seed=1"}


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in CHANGED:
        monkeypatch.setattr(module, name, getattr(module, name))


def admit_all(*_: Any) -> Settings:
    return SETTINGS


def admit_none(*_: Any) -> Settings:
    raise BundleRefusedError("not this one")


def apply_all() -> None:
    flower_patches.allow_slow_starts()
    flower_patches.wrap_superlink_app(lambda create: create)
    flower_patches.admit_tasks(admit_all)
    flower_patches.admit_clientapp(admit_all)


def test_they_fit_the_installed_flower() -> None:
    apply_all()
    assert in_memory.HEARTBEAT_DEFAULT_INTERVAL == flower_patches.START_LIMIT


@pytest.mark.parametrize(("module", "name"), CHANGED)
def test_a_flower_without_the_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    monkeypatch.delattr(module, name)
    with pytest.raises(RuntimeError, match=f"{module.__name__}.{name} of .* is missing"):
        apply_all()


@pytest.mark.parametrize(("module", "name"), CHANGED[4:])
def test_a_flower_with_another_signature_is_refused(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    monkeypatch.setattr(module, name, lambda other: None)
    with pytest.raises(RuntimeError, match="does not take"):
        apply_all()


def node_state() -> Any:
    """The state of a SuperNode that has taken in one run."""
    state = factory.NodeStateFactory(ObjectStoreFactory()).state()
    digest = state.store_fab(Fab("", b"bundle", {}))
    run = Run.create_empty(1)
    run.fab_hash = digest
    state.store_run(run)
    return state


@pytest.mark.parametrize("kind", [TaskType.SERVER_APP, TaskType.AGENT_APP, TaskType.CLIENT_APP])
def test_a_supernodes_state_makes_no_serverapp_or_agentapp_task_that_is_not_admitted(
    kind: TaskType,
) -> None:
    flower_patches.admit_tasks(admit_none)
    state = node_state()
    assert state.create_task(kind, 1, fab_hash="x") is None
    assert list(state.get_tasks()) == []


def test_a_supernodes_state_asks_with_the_runs_own_bundle() -> None:
    asked: list[tuple[str, int, bytes]] = []

    def admit(task: str, run: Run, fab: Fab) -> Settings:
        asked.append((task, run.run_id, fab.content))
        return SETTINGS

    flower_patches.admit_tasks(admit)
    state = node_state()
    assert state.create_task(TaskType.CLIENT_APP, 1, fab_hash="x") is not None
    assert asked == [(TaskType.CLIENT_APP, 1, b"bundle")]
    assert state.create_task(TaskType.CLIENT_APP, 2, fab_hash="x") is None


def installed_by_clientapp(
    monkeypatch: pytest.MonkeyPatch, admit: flower_patches.Admit, run_config: Settings
) -> list[bytes]:
    """The bundles that Flower's ClientApp program installs, in the order of its own calls."""
    installed: list[bytes] = []
    context = SimpleNamespace(run_config=run_config)
    task = (None, context, Run.create_empty(1), Fab("", b"bundle", {}))
    monkeypatch.setattr(runtime, "pull_task_input", lambda client: task)

    def install(fab_file: bytes, **_: Any) -> None:
        installed.append(fab_file)

    monkeypatch.setattr(runtime, "install_from_fab", install)
    flower_patches.admit_clientapp(admit)
    assert runtime.pull_task_input(None) == task  # type: ignore[arg-type]
    try:
        runtime.install_from_fab(b"bundle", skip_prompt=True)
    except BundleRefusedError:
        assert installed == []
    return installed


def test_clientapp_unpacks_an_admitted_bundle_with_its_own_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert installed_by_clientapp(monkeypatch, admit_all, dict(SETTINGS)) == [b"bundle"]
    assert installed_by_clientapp(monkeypatch, admit_none, dict(SETTINGS)) == []
    # Flower keeps one context for the runs of a series.
    assert installed_by_clientapp(monkeypatch, admit_all, {"overrides": "another run's"}) == []


def test_child_processes_of_the_app_start_no_second_clientapp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A spawned process imports the program anew, under this name."""
    program = Path(__file__).parents[3] / "docker" / "flwr-clientapp"
    started: list[bool] = []
    monkeypatch.setattr("deployment.clientapp.main", lambda: started.append(True))
    runpy.run_path(str(program), run_name="__mp_main__")
    assert started == []
    runpy.run_path(str(program), run_name="__main__")
    assert started == [True]

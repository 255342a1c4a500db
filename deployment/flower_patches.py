"""Patches of the installed Flower, for changes that Flower offers no hook for.

Each patch supports Flower 1.41 and 1.42. It fails at start-up if Flower has no object of that name
or no such parameters.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from flwr import __version__
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run, RunNotRunningException

from deployment.signing import BundleRefusedError, Settings

Admit = Callable[[str, Run, Fab], Settings]
"""`deployment.admission.Admission.admit`: raises `BundleRefusedError` for a refused task."""
SUPERLINK_COMMAND = "flwr.superlink.cli.flower_superlink"
"""Module of the command; its package has a function of the same name."""
START_LIMIT = 120
"""Seconds until a process's first heartbeat; Flower gives up a dead process after twice that."""


def allow_slow_starts() -> None:
    """Gives the processes that Flower starts for a message more time until their first heartbeat.

    Flower restarts a task whose process sends no heartbeat within 30 seconds. Imports take seconds
    of a core, and on a busy host every restart comes too late again.
    """
    import flwr.supercore.corestate.in_memory_corestate as in_memory
    import flwr.supercore.corestate.sql_corestate as sql

    for state in (in_memory, sql):
        _replace(state, "HEARTBEAT_DEFAULT_INTERVAL", lambda _: START_LIMIT)


def wrap_superlink_app(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wraps Flower's factory of the SuperLink's web application.

    Flower serves the sites' interface and the interface that starts runs on one port, to any
    caller, and reads a request of any length before it authenticates the caller.
    """
    import flwr.superlink.main as superlink

    _replace(superlink, "create_app", wrap)


def serve_superlink(serve: Callable[..., None]) -> None:
    """Serves the SuperLink's web application by another function than `uvicorn.run`.

    Flower calls it with the application, address and certificates, and sets no limits.
    """
    command = import_module(SUPERLINK_COMMAND)
    _existing(_existing(command, "uvicorn"), "run", "app", "host", "port")
    _replace(command, "uvicorn", lambda _: SimpleNamespace(run=serve))


def give_superexec_secret(file: Path) -> None:
    """Starts the SuperExec, which starts ServerApps, with a secret.

    Flower has such a secret for a SuperExec that the user starts, and ignores it for its own. Any
    caller could then take over the tasks of a run.
    """
    command = import_module(SUPERLINK_COMMAND)

    def with_secret(build: Callable[..., list[str]]) -> Callable[..., list[str]]:
        return lambda **options: [*build(**options), f"--superexec-auth-secret-file={file}"]

    _replace(command, "_get_superexec_command", with_secret, "runtime_address", "parent_pid")


def admit_tasks(admit: Admit) -> None:
    """Restricts a SuperNode to admitted tasks.

    The server names the kind of a task, and Flower starts the program of that kind. Every task
    begins in the SuperNode's state, also the tasks of its interface for processes. A task refused
    there gets no token and no program. Messages are checked earlier, on arrival: a refused message
    is answered with the refusal, and its content is not read.
    """
    import flwr.supernode.nodestate.nodestate_factory as factory
    import flwr.supernode.start_client_internal as loop

    _replace(factory, "InMemoryNodeState", lambda state: _admitting_state(state, admit))
    insert = _existing(loop, "_insert_message", "msg", "state", "store")
    _replace(
        loop,
        "_pull_and_store_message",
        lambda store: _admitting_store(store, insert, admit),
        *("state", "object_store", "receive", "get_run", "get_fab"),
    )


def admit_clientapp(admit: Admit) -> None:
    """Restricts `flwr-clientapp` to admitted bundles with the admitted settings.

    Flower keeps one context for all runs of a series, so a run may get the settings of another.
    Programs other than this SuperNode may also start `flwr-clientapp`.
    """
    import flwr.supernode.runtime.run_clientapp as runtime

    task_input: list[Any] = []

    def noted(read: Callable[..., Any]) -> Callable[..., Any]:
        def read_noted(client: Any) -> Any:
            task_input[:] = read(client)
            return tuple(task_input)

        return read_noted

    def admitted(install: Callable[..., Any]) -> Callable[..., Any]:
        def install_admitted(fab_file: bytes, **options: Any) -> Any:
            _, context, run, fab = task_input
            if dict(admit(TaskType.CLIENT_APP, run, fab)) != context.run_config:
                raise BundleRefusedError("the app bundle has another run's settings")
            return install(fab.content, **options)

        return install_admitted

    _replace(runtime, "pull_task_input", noted, "client")
    _replace(runtime, "install_from_fab", admitted, "fab_file")


def _admitting_state(state: type, admit: Admit) -> type:
    _existing(state, "create_task", "task_type", "run_id")

    class AdmittingNodeState(state):  # type: ignore[misc]
        """Flower's state of a SuperNode, without tasks that are not admitted."""

        def create_task(self, task_type: str, run_id: int, **options: Any) -> int | None:
            run = self.get_run(run_id)
            fab = run and self.get_fab(run.fab_hash)
            if run is None or fab is None:
                return None
            try:
                admit(task_type, run, fab)
            except BundleRefusedError:
                return None
            made: int | None = super().create_task(task_type, run_id, **options)
            return made

    return AdmittingNodeState


def _admitting_store(
    store: Callable[..., int | None], insert: Callable[..., None], admit: Admit
) -> Callable[..., int | None]:
    def store_admitted(**parts: Any) -> int | None:
        state, get_run, get_fab = parts["state"], parts["get_run"], parts["get_fab"]
        received = parts["receive"]()
        if received is None:
            return None
        message = received[0]
        run_id: int = message.metadata.run_id
        try:
            run = state.get_run(run_id) or get_run(run_id)
            fab = state.get_fab(run.fab_hash) or get_fab(run.fab_hash, run_id)
            agent = run.primary_task_type == TaskType.AGENT_APP
            admit(TaskType.AGENT_APP if agent else TaskType.CLIENT_APP, run, fab)
        except RunNotRunningException:
            return None
        except BundleRefusedError as error:
            refusal = Message(Error(ErrorCode.INVALID_FAB, str(error)), reply_to=message)
            insert(refusal, state, parts["object_store"])
            return run_id
        # Flower gets exactly the admitted message, run and bundle.
        parts |= {
            "receive": lambda: received,
            "get_run": lambda _: run,
            "get_fab": lambda *_: fab,
        }
        return store(**parts)

    return store_admitted


def _replace(module: ModuleType, name: str, change: Callable[[Any], Any], *parameters: str) -> None:
    """Replaces an attribute of Flower's module by `change` of it."""
    setattr(module, name, change(_existing(module, name, *parameters)))


def _existing(place: ModuleType | type, name: str, *parameters: str) -> Any:
    """An attribute of Flower's.

    Raises:
        RuntimeError: if it is missing, or a function without these parameters.
    """
    here = f"{place.__name__}.{name} of Flower {__version__}"
    if not hasattr(place, name):
        raise RuntimeError(f"{here} is missing and can't be changed")
    found = getattr(place, name)
    missing = set(parameters) - set(inspect.signature(found).parameters) if parameters else None
    if missing:
        raise RuntimeError(f"{here} does not take {sorted(missing)} and can't be changed")
    return found

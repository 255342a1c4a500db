"""What is changed within the installed Flower, which offers no hook for it.

Each change holds for Flower 1.41 and 1.42, and fails at start-up where Flower has nothing of that
name or shape.
"""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from flwr import __version__
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run, RunNotRunningException

from deployment.signing import BundleRefusedError, Settings

Admit = Callable[[str, Run, Fab], Settings]
"""`deployment.admission.Admission.admit`: raises what may not run."""
START_LIMIT = 120
"""Seconds. A process that died after its start is given up after twice that."""


def allow_slow_starts() -> None:
    """Gives processes that Flower starts for a message more time before their first sign of life.

    Flower takes back a task whose process has not called within 30 seconds, and starts it anew. To
    import what it needs takes seconds of a core; on a busy host it came too late each time.
    """
    import flwr.supercore.corestate.in_memory_corestate as in_memory
    import flwr.supercore.corestate.sql_corestate as sql

    for state in (in_memory, sql):
        _replace(state, "HEARTBEAT_DEFAULT_INTERVAL", lambda _: START_LIMIT)


def wrap_superlink_app(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts a wrapper around Flower's maker of the SuperLink's web application.

    Flower serves the sites' interface and the one that starts runs on one port to whoever calls.
    """
    import flwr.superlink.main as superlink

    _replace(superlink, "create_app", wrap)


def admit_tasks(admit: Admit) -> None:
    """Lets a SuperNode make only such tasks as are admitted.

    Flower starts whatever program belongs to the kind of task that the server names. The state of
    a SuperNode is where every task begins, the ones of its own interface for processes, too: what
    is refused there has no token, and no program is started for it. Before that, what the server
    sends is looked at as it arrives, so that the refusal is answered and nothing of it is read.
    """
    import flwr.supernode.nodestate.nodestate_factory as factory
    import flwr.supernode.start_client_internal as loop

    _replace(factory, "InMemoryNodeState", lambda state: _admitting_state(state, admit))
    insert = _existing(loop, "_insert_message", "msg", "state", "store")
    _replace(
        loop,
        "_pull_and_store_message",
        lambda pull: _admitting_pull(pull, insert, admit),
        *("state", "object_store", "receive", "get_run", "get_fab"),
    )


def admit_clientapp(admit: Admit) -> None:
    """Lets `flwr-clientapp` unpack only what is admitted, with the settings that are.

    Flower keeps one context for all runs of a series, so that a run may be given another's
    settings; and this program could be started by something else than our SuperNode.
    """
    import flwr.supernode.runtime.run_clientapp as runtime

    pulled: list[Any] = []

    def noted(pull: Callable[..., Any]) -> Callable[..., Any]:
        def pull_noted(client: Any) -> Any:
            pulled[:] = pull(client)
            return tuple(pulled)

        return pull_noted

    def admitted(install: Callable[..., Any]) -> Callable[..., Any]:
        def install_admitted(fab_file: bytes, **options: Any) -> Any:
            _, context, run, fab = pulled
            if dict(admit(TaskType.CLIENT_APP, run, fab)) != context.run_config:
                raise BundleRefusedError("the app bundle was given another run's settings")
            return install(fab.content, **options)

        return install_admitted

    _replace(runtime, "pull_task_input", noted, "client")
    _replace(runtime, "install_from_fab", admitted, "fab_file")


def _admitting_state(state: type, admit: Admit) -> type:
    _existing(state, "create_task", "task_type", "run_id")

    class AdmittingNodeState(state):  # type: ignore[misc]
        """Flower's state of a SuperNode, which makes no task that is not admitted."""

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


def _admitting_pull(
    pull: Callable[..., int | None], insert: Callable[..., None], admit: Admit
) -> Callable[..., int | None]:
    def pull_admitted(**parts: Any) -> int | None:
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
        # The very ones that were admitted.
        parts |= {
            "receive": lambda: received,
            "get_run": lambda _: run,
            "get_fab": lambda *_: fab,
        }
        return pull(**parts)

    return pull_admitted


def _replace(module: ModuleType, name: str, change: Callable[[Any], Any], *parameters: str) -> None:
    """Puts what `change` makes of it in the place of something of Flower's."""
    setattr(module, name, change(_existing(module, name, *parameters)))


def _existing(place: ModuleType | type, name: str, *parameters: str) -> Any:
    """What Flower has under a name.

    Raises:
        RuntimeError: if this Flower has nothing there, or a function without such parameters.
    """
    here = f"{place.__name__}.{name} of Flower {__version__}"
    if not hasattr(place, name):
        raise RuntimeError(f"{here} is missing and can't be changed")
    found = getattr(place, name)
    missing = set(parameters) - set(inspect.signature(found).parameters) if parameters else None
    if missing:
        raise RuntimeError(f"{here} does not take {sorted(missing)} and can't be changed")
    return found

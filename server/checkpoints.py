"""How a checkpoint stores a run's state, which checkpoints are kept, and where a run continues."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hash_chain import Tip
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODING,
    EMA,
    JOINT,
    WHITENING,
)
from mediffusion_core.run_io.checkpoints import (
    Checkpoint,
    list_checkpoints,
    newest_checkpoint,
    resumable_checkpoints,
    save_checkpoint,
)
from mediffusion_core.run_io.run_folder import JOINT_STAGE, RunFolder
from mediffusion_core.settings import Settings
from server.selection import Evaluated, Selection
from server.state import RunState

log = logging.getLogger(__name__)

StateDict = Mapping[str, Tensor]

LATENT_SCALE = "latent_scale"
SERVER, CONTROL, LEDGER = "server_", "control_", "ledger_"
"""Before a name in a checkpoint: optimizer memory of a component, the sites' gradients of a
component as `SITE/PARAMETER`, and a site's ledger tip."""


def save_state(state: RunState, folder: RunFolder, settings: Settings, stage: str) -> None:
    """Writes a checkpoint and removes those that are not needed any more."""
    rounds = state.autoencoder_rounds if stage == AUTOENCODER else state.joint_rounds
    state.saved += 1
    values = {
        "settings_hash": settings.fingerprint(),
        "history": folder.history(),
        "autoencoder_rounds": state.autoencoder_rounds,
        "joint_rounds": state.joint_rounds,
        "selection": asdict(state.selection) if state.selection else None,
        "judged": state.evaluated,
        "census": state.census,
        "noised_means": str(state.noised_means) if state.noised_means else None,
        "seconds": state.seconds,
    }
    save_checkpoint(folder.checkpoints, state.saved, stage, rounds, stored(state), values)
    kept = list_checkpoints(folder.checkpoints)
    needed = needed_checkpoints(kept, settings.run.keep_last)
    for checkpoint in kept:
        if checkpoint not in needed:
            checkpoint.remove()


def needed_checkpoints(kept: Sequence[Checkpoint], keep_last: int) -> list[Checkpoint]:
    """The newest checkpoints, and for each of them the one of its selected round.

    A run that continues from one of the newest takes the selected model from the other, so at most
    twice `keep_last` are needed.
    """
    newest = kept[-keep_last:]
    selected = {_selected(one) for one in newest}
    return [one for one in kept if one in newest or one.name in selected]


def restore_state(folder: RunFolder, settings: Settings) -> RunState | None:
    """The state after the newest sound checkpoint, None where there is none; drops later metrics.

    A checkpoint holds the lines of `metrics.jsonl` up to it, so a damaged file is mended.

    Raises:
        UserError: if the checkpoint was written under other settings or by another program, or all
            are damaged.
    """
    newest = newest_checkpoint(resumable_checkpoints(folder.checkpoints, settings), log.warning)
    if newest is None:
        folder.rewrite([])
        return None
    values = newest.state
    written_under = values.get("settings_hash")
    if written_under != settings.fingerprint():
        raise UserError(
            f"checkpoint {newest.folder.name} was written under other settings "
            f"(hash {written_under!a}, now {settings.fingerprint()})"
        )
    components = {name: newest.load(name) for name in newest.components()}
    try:
        restored = _restored(values, components, newest.number)
        folder.rewrite(values["history"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"checkpoint {newest.folder.name} holds no state of this program "
            f"({type(error).__name__})"
        ) from None
    return restored


def _restored(
    values: Mapping[str, Any], components: Mapping[str, StateDict], number: int
) -> RunState:
    restored = from_stored(components)
    restored.autoencoder_rounds = values["autoencoder_rounds"]
    restored.joint_rounds = values["joint_rounds"]
    restored.selection = _selection(values["selection"])
    restored.evaluated = values["judged"]
    restored.census = values["census"]
    restored.saved = number
    tip = values.get("noised_means")
    if tip and isinstance(tip, int):  # 0 without client-level privacy
        raise UserError(
            f"checkpoint {number} counts noised means as an earlier version did; finish the run "
            "with the version that began it"
        )
    restored.noised_means = Tip.parse(tip) if tip else None
    restored.seconds = values["seconds"]
    return restored


def selected_state(folder: RunFolder, selection: Selection) -> RunState | None:
    """The weights of the selected round; None, with a line in the log, where they are damaged."""
    name = f"{JOINT_STAGE}-{selection.kept}"
    found = [one for one in list_checkpoints(folder.checkpoints) if one.name == name]
    damage = found[0].damage() if found else "it is missing"
    if damage is None:
        return from_stored({one: found[0].load(one) for one in found[0].components()})
    log.warning("the selected round's checkpoint %s: %s; model/ stays as it is", name, damage)
    return None


def stored(state: RunState) -> dict[str, StateDict]:
    """The components of a checkpoint by name; `from_stored` reads them."""
    once = {LATENT_SCALE: state.latent_scale, WHITENING: state.whitening}
    controls = {
        CONTROL + component: {
            f"{site}/{name}": value for site, one in sites.items() for name, value in one.items()
        }
        for component, sites in state.controls.items()
    }
    return {
        **state.weights,
        **{EMA + name: average for name, average in state.averages.items()},
        **{name: given for name, given in once.items() if given is not None},
        **{SERVER + name: memory for name, memory in state.optimizer_memory.items()},
        **controls,
        **{LEDGER + site: tip for site, tip in state.ledger_tips.items()},
    }


def from_stored(components: Mapping[str, StateDict]) -> RunState:
    """The state that `stored` made these components of, without its counters."""

    def after(prefix: str) -> dict[str, StateDict]:
        return {n.removeprefix(prefix): c for n, c in components.items() if n.startswith(prefix)}

    return RunState(
        weights={name: components[name] for name in (*AUTOENCODING, *JOINT)},
        averages=after(EMA),
        latent_scale=components.get(LATENT_SCALE),
        whitening=components.get(WHITENING),
        optimizer_memory=after(SERVER),
        controls={name: _by_site(kept) for name, kept in after(CONTROL).items()},
        ledger_tips=after(LEDGER),
    )


def _by_site(kept: StateDict) -> dict[str, StateDict]:
    sites: dict[str, dict[str, Tensor]] = {}
    for key, value in kept.items():
        site, _, name = key.rpartition("/")  # no parameter's name has a slash
        sites.setdefault(site, {})[name] = value
    return dict(sites)


def _selection(saved: Mapping[str, Any] | None) -> Selection | None:
    return Selection(saved["kept"], Evaluated(**saved["highest"])) if saved else None


def _selected(checkpoint: Checkpoint) -> str | None:
    """The name of the selected round after a checkpoint; None before there is one."""
    try:
        selection = checkpoint.state["selection"]
        return f"{JOINT_STAGE}-{selection['kept']}" if selection else None
    except (UserError, KeyError, TypeError):  # damaged
        return None

"""Where a run stands: everything that its continuation needs, and how a checkpoint stores it."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.inference.joint_model import TrainedModel, build_joint, restore_joint
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODER_MOMENTS,
    AUTOENCODING,
    EMA,
    HEAD,
    HEAD_MOMENTS,
    JOINT,
    UNET,
    UNET_MOMENTS,
)
from mediffusion_core.models import Autoencoder, LatentCodec
from mediffusion_core.run_io.checkpoints import (
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from mediffusion_core.training.adam_moments import fresh_moments
from server.messages import Census
from server.public_model import PublicModel
from server.selection import Evaluated, Selection

log = logging.getLogger(__name__)

StateDict = Mapping[str, Tensor]

LATENT_SCALE = "latent_scale"
SERVER, CONTROL, LEDGER = "server_", "control_", "ledger_"
"""Before a name in a checkpoint: optimizer memory of a component, the sites' gradients of a
component as `SITE/PARAMETER`, and a site's ledger tip."""
KEPT = 2
"""Checkpoints."""


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        weights: The components that the sites train, Adam's moments among them.
        averages: Moving averages of the global UNet and head.
        latent_scale: `mean` and `std` (c,) of the latents; None before the latent census.
        optimizer_memory: What the server's optimizers keep, by component.
        controls: SCAFFOLD's gradients, by component and site.
        ledger_tips: By site, the tip of its privacy ledger.
        census: Counts of every site that has taken part.
        autoencoder_rounds: Rounds done.
        joint_rounds: Rounds done.
        selection: The selected model; None before the first evaluation of a trained one.
        evaluated: The joint round of the newest evaluation; -1 before the first.
        saved: The number of the newest checkpoint.
        seconds: How long the run has taken.
    """

    weights: dict[str, StateDict] = field(default_factory=dict)
    averages: dict[str, StateDict] = field(default_factory=dict)
    latent_scale: StateDict | None = None
    optimizer_memory: dict[str, StateDict] = field(default_factory=dict)
    controls: dict[str, dict[str, StateDict]] = field(default_factory=dict)
    ledger_tips: dict[str, StateDict] = field(default_factory=dict)
    census: dict[str, Census] = field(default_factory=dict)
    autoencoder_rounds: int = 0
    joint_rounds: int = 0
    selection: Selection | None = None
    evaluated: int = -1
    saved: int = 0
    seconds: float = 0.0

    def shared(self, names: Iterable[str]) -> dict[str, StateDict]:
        """The named components as they go to the sites: weights, or averages by `EMA` + name."""
        averages = {EMA + name: average for name, average in self.averages.items()}
        return {name: (self.weights | averages)[name] for name in names}

    def save(self, folder: RunFolder, settings_hash: str, stage: str) -> None:
        """Writes a checkpoint and drops those that are no longer needed."""
        rounds = self.autoencoder_rounds if stage == AUTOENCODER else self.joint_rounds
        self.saved += 1
        state = {
            "settings_hash": settings_hash,
            "history": folder.history(),
            "autoencoder_rounds": self.autoencoder_rounds,
            "joint_rounds": self.joint_rounds,
            "selection": asdict(self.selection) if self.selection else None,
            "judged": self.evaluated,
            "census": self.census,
            "seconds": self.seconds,
        }
        components = stored(self)
        save_checkpoint(folder.checkpoints, self.saved, stage, rounds, components, state)
        prune_checkpoints(folder.checkpoints, KEPT)

    def model(
        self,
        settings: Settings,
        classes: tuple[str, ...],
        multi_label: bool,
        device: torch.device,
        temperature: float,
    ) -> TrainedModel:
        """The averaged global model of the joint stage, calibrated by a temperature."""
        unet, head = self.averages[UNET], self.averages[HEAD]
        joint = restore_joint(settings, len(classes), unet, head)
        codec = self.codec(settings).to(device)
        return TrainedModel(settings, classes, multi_label, codec, joint.to(device), temperature)

    def codec(self, settings: Settings) -> LatentCodec:
        """The global autoencoder with the latent scale; unit scale before the latent census."""
        autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
        autoencoder.load_state_dict(dict(self.weights[AUTOENCODER]))
        channels = settings.model.autoencoder.latent_channels
        unit = {"mean": torch.zeros(channels), "std": torch.ones(channels)}
        scale = self.latent_scale or unit
        return LatentCodec(autoencoder, scale["mean"], scale["std"])


def fresh_state(settings: Settings, num_classes: int) -> RunState:
    """Untrained weights, drawn from the run's seed, or those of a public model.

    Raises:
        UserError: if the public model does not fit the settings.
    """
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
    joint = build_joint(settings, num_classes)
    networks = {AUTOENCODER: autoencoder, UNET: joint.unet, HEAD: joint.head}
    weights: dict[str, StateDict] = {name: net.state_dict() for name, net in networks.items()}
    latent_scale = None
    if settings.privacy.enabled and settings.privacy.public_model is not None:
        public = PublicModel.load(settings, num_classes)
        weights |= public.weights
        latent_scale = public.latent_scale
    averages = {name: weights[name] for name in (UNET, HEAD)}
    weights |= {
        AUTOENCODER_MOMENTS: fresh_moments(autoencoder),
        UNET_MOMENTS: fresh_moments(joint.unet),
        HEAD_MOMENTS: fresh_moments(joint.head),
    }
    return RunState(weights=weights, averages=averages, latent_scale=latent_scale)


def restore_state(folder: RunFolder, settings_hash: str) -> RunState | None:
    """The state after the newest sound checkpoint, None where there is none; drops later metrics.

    A checkpoint holds the lines of `metrics.jsonl` up to it, so a damaged file is mended.

    Raises:
        UserError: if the checkpoint was written under other settings or by another program, or all
            are damaged.
    """
    newest = newest_checkpoint(folder.checkpoints, log.warning)
    if newest is None:
        folder.rewrite([])
        return None
    state = newest.state
    written_under = state.get("settings_hash")
    if written_under != settings_hash:
        raise UserError(
            f"checkpoint {newest.folder.name} was written under other settings "
            f"(hash {written_under!a}, now {settings_hash})"
        )
    components = {name: newest.load(name) for name in newest.components()}
    try:
        restored = _restored(state, components, newest.number)
        folder.rewrite(state["history"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"checkpoint {newest.folder.name} holds no state of this program "
            f"({type(error).__name__})"
        ) from None
    return restored


def _restored(
    state: Mapping[str, Any], components: Mapping[str, StateDict], number: int
) -> RunState:
    restored = from_stored(components)
    restored.autoencoder_rounds = state["autoencoder_rounds"]
    restored.joint_rounds = state["joint_rounds"]
    restored.selection = _selection(state["selection"])
    restored.evaluated = state["judged"]
    restored.census = state.get("census", {})
    restored.saved = number
    restored.seconds = state["seconds"]
    return restored


def stored(state: RunState) -> dict[str, StateDict]:
    """The components of a checkpoint by name; `from_stored` reads them."""
    scale = {} if state.latent_scale is None else {LATENT_SCALE: state.latent_scale}
    controls = {
        CONTROL + component: {
            f"{site}/{name}": value for site, one in sites.items() for name, value in one.items()
        }
        for component, sites in state.controls.items()
    }
    return {
        **state.weights,
        **{EMA + name: average for name, average in state.averages.items()},
        **scale,
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

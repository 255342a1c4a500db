"""Where a run stands: all that its continuation needs."""

from collections.abc import Mapping
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
    EMA,
    HEAD,
    HEAD_MOMENTS,
    UNET,
    UNET_MOMENTS,
)
from mediffusion_core.models import Autoencoder, LatentCodec
from mediffusion_core.run_io.checkpoints import list_checkpoints, prune_checkpoints, save_checkpoint
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from mediffusion_core.training.adam_moments import fresh_moments
from server.privacy import SCALE, public_components
from server.selection import Judged, Selection

StateDict = Mapping[str, Tensor]

SERVER = "server_"
"""Before a component's name: what the server's optimizer remembers of it."""
KEPT = 2


@dataclass
class RunState:
    """Rounds done, global weights, and which model is kept so far."""

    autoencoder_rounds: int = 0
    joint_rounds: int = 0
    components: dict[str, StateDict] = field(default_factory=dict)
    selection: Selection | None = None
    judged: int = -1
    saved: int = 0
    seconds: float = 0.0

    def save(self, folder: RunFolder, settings_hash: str, stage: str) -> None:
        """Writes a checkpoint and drops those that are no longer needed."""
        rounds = self.autoencoder_rounds if stage == AUTOENCODER else self.joint_rounds
        self.saved += 1
        state = {
            "settings_hash": settings_hash,
            "metrics_lines": len(folder.history()),
            "autoencoder_rounds": self.autoencoder_rounds,
            "joint_rounds": self.joint_rounds,
            "selection": asdict(self.selection) if self.selection else None,
            "judged": self.judged,
            "seconds": self.seconds,
        }
        save_checkpoint(folder.checkpoints, self.saved, stage, rounds, self.components, state)
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
        unet, head = self.components[EMA + UNET], self.components[EMA + HEAD]
        joint = restore_joint(settings, len(classes), unet, head)
        codec = self.codec(settings).to(device)
        return TrainedModel(settings, classes, multi_label, codec, joint.to(device), temperature)

    def codec(self, settings: Settings) -> LatentCodec:
        """The global autoencoder with the latent scale; unit scale before the latent census."""
        autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
        autoencoder.load_state_dict(dict(self.components[AUTOENCODER]))
        channels = settings.model.autoencoder.latent_channels
        unit = {"mean": torch.zeros(channels), "std": torch.ones(channels)}
        scale = self.components.get(SCALE, unit)
        return LatentCodec(autoencoder, scale["mean"], scale["std"])


def fresh_state(settings: Settings, num_classes: int) -> RunState:
    """Untrained weights, drawn from the run's seed."""
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
    joint = build_joint(settings, num_classes)
    unet, head = joint.unet.state_dict(), joint.head.state_dict()
    components = {AUTOENCODER: autoencoder.state_dict(), UNET: unet, HEAD: head}
    if settings.privacy.enabled and settings.privacy.public_model is not None:
        public = public_components(settings, num_classes)
        components |= public
        unet, head = components[UNET], components[HEAD]
    components |= {EMA + UNET: unet, EMA + HEAD: head}
    trained = {AUTOENCODER_MOMENTS: autoencoder, UNET_MOMENTS: joint.unet, HEAD_MOMENTS: joint.head}
    components |= {name: fresh_moments(module) for name, module in trained.items()}
    return RunState(components=dict(components))


def restore_state(folder: RunFolder, settings_hash: str) -> RunState | None:
    """The state after the newest checkpoint, None where there is none; drops later metrics.

    Raises:
        UserError: if the checkpoint was written under other settings.
    """
    checkpoints = list_checkpoints(folder.checkpoints)
    if not checkpoints:
        folder.rewind(0)
        return None
    newest = checkpoints[-1]
    state = newest.state
    if state["settings_hash"] != settings_hash:
        raise UserError(
            f"checkpoint {newest.folder.name} was written under other settings "
            f"(hash {state['settings_hash']}, now {settings_hash})"
        )
    folder.rewind(state["metrics_lines"])
    return RunState(
        autoencoder_rounds=state["autoencoder_rounds"],
        joint_rounds=state["joint_rounds"],
        components={name: newest.load(name) for name in newest.components()},
        selection=_selection(state["selection"]),
        judged=state["judged"],
        saved=newest.number,
        seconds=state["seconds"],
    )


def _selection(saved: Mapping[str, Any] | None) -> Selection | None:
    return Selection(saved["kept"], Judged(**saved["highest"])) if saved else None

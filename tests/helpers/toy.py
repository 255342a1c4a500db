"""The smallest joint network and one round of it, for the tests of training."""

import torch

from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import DiffusionSettings, HeadSettings, JointTraining, UNetSettings
from mediffusion_core.training.auxiliary import Auxiliary
from mediffusion_core.training.joint import joint_optimizer, train_joint
from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_report import LocalReport, Progress
from mediffusion_core.training.local_round import LocalRound

PROCESS = DiffusionProcess.of(DiffusionSettings())
ALPHAS = PROCESS.alphas_cumprod
UNET = UNetSettings(
    channels=(16, 16),
    attention=(False, False),
    layers_per_block=1,
    attention_head_width=16,
    norm_groups=8,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(step: int, steps: int, loss: float) -> None:
    pass


def joint_training(**changes: object) -> JointTraining:
    given: dict[str, object] = {
        "local_epochs": 2,
        "batch_size": 4,
        "labelled_batch_size": 4,
        "learning_rate": 1e-3,
        "head_learning_rate": 1e-3,
        "classification_weight": 0.1,
    }
    return JointTraining.model_validate(given | changes)


def toy_network(classes: int = 2, seed: int = 0, dropout: float = 0.1) -> JointUNet:
    """For latents (2, 8, 8)."""
    torch.manual_seed(seed)
    return JointUNet(UNET, HeadSettings(hidden=16, dropout=dropout), (2, 8, 8), classes)


def train_toy(
    model: JointUNet,
    data: LatentSet,
    settings: JointTraining,
    *,
    seed: int = 5,
    optimizer: torch.optim.AdamW | None = None,
    on_step: Progress = quiet,
    counts: LabelCounts | None = None,
    teacher: JointUNet | None = None,
) -> LocalReport:
    """The first of two rounds."""
    return train_joint(
        model,
        optimizer or joint_optimizer(model, settings),
        data,
        settings,
        PROCESS,
        LocalRound(1, 2, seed, on_step=on_step),
        Auxiliary(counts, teacher),
    )

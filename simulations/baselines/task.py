"""How a baseline is trained at every site."""

from dataclasses import dataclass

import torch
from torch import nn

from mediffusion_core.data.augmentation import turns_and_flips
from simulations.baselines.settings import TrainedSettings


@dataclass(frozen=True)
class BaselineTask:
    """How a baseline is trained at every site.

    Attributes:
        settings: Of the baseline.
        augmentation: Kind of augmentation, as `augment` takes it.
        multi_label: Whether the classes are independent.
        precision: As `autocast` takes it.
    """

    settings: TrainedSettings
    augmentation: str
    multi_label: bool
    precision: str

    @property
    def orientation_free(self) -> bool:
        """Whether turned and flipped images are equally likely."""
        return turns_and_flips(self.augmentation)

    def optimizer(self, network: nn.Module) -> torch.optim.AdamW:
        """AdamW over all parameters of a network."""
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        group = {"params": network.parameters(), "base": rate}
        return torch.optim.AdamW([group], weight_decay=decay, fused=True)

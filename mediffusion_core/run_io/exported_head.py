"""The classifier as a component of a diffusers pipeline."""

from collections.abc import Sequence

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.models.head import ClassifierHead
from mediffusion_core.settings import HeadSettings

__all__ = ["ExportedHead", "ModelMixin"]
# diffusers looks for the base class, which tells it how to load, beside the class.


class ExportedHead(ModelMixin, ConfigMixin):
    """The head, with the names of its classes.

    Its configuration has the classes in the order of the logits, whether an image may have several
    of them, and the temperature, the divisor of the logits of calibrated probabilities. diffusers
    writes each parameter of the constructor as one key of the configuration: `moments` is
    `HeadSettings.latent_statistics` under the name of earlier folders.

    Raises:
        UserError: for a head of an earlier version that takes statistics beside maps.
    """

    @register_to_config
    def __init__(
        self,
        widths: Sequence[int],
        classes: Sequence[str],
        multi_label: bool,
        temperature: float = 1.0,
        hidden: int = 1024,
        dropout: float = 0.3,
        pooling: str = "mean",
        moments: bool = False,
        normalised: bool = False,
    ) -> None:
        """Takes the channels of the inputs, the classes, and the layers' settings."""
        super().__init__()
        if moments and len(widths) > 1:
            raise UserError(
                "the classifier takes statistics of the latent beside maps, as that of an earlier "
                "version; open it with the version that wrote it"
            )
        settings = HeadSettings.model_validate(
            {
                "hidden": hidden,
                "dropout": dropout,
                "pooling": pooling,
                "latent_statistics": moments,
                "normalised": normalised,
            }
        )
        self.layers = ClassifierHead(widths, len(classes), settings)

    def forward(self, read: Sequence[Tensor] | Tensor) -> Tensor:
        """Maps (B, C_i, h_i, w_i), or latents (B, c, h, w), to logits (B, classes)."""
        logits: Tensor = self.layers(read)
        return logits

"""A network in place of the joint UNet that computes all outputs in one function."""

from torch import Tensor, nn

from mediffusion_core.models.unet import Encoded


class InOneCall(nn.Module):
    """Its `forward` has latents, timesteps and the rows of both outputs."""

    def encode(self, latents: Tensor, timesteps: Tensor) -> Encoded:
        """Keeps both as they are."""
        return Encoded(latents, timesteps, ())

    def outputs(self, encoded: Encoded, denoise: slice, classify: slice) -> object:
        """Calls `forward` with what was kept."""
        return self(encoded.latents, encoded.embedding, denoise, classify)

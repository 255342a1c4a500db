"""A site's images as latents: encoded once, a fixed number of random views each."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.model import LatentCodec
from mediffusion_core.training.augmentation import augment
from mediffusion_core.training.local import autocast

BATCH = 128


@torch.no_grad()
def encode_views(
    codec: LatentCodec,
    images: ImageSet,
    *,
    views: int,
    augmentation: str,
    precision: str,
    seed: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Encodes each image as it is, and `views - 1` random views of it.

    Args:
        codec: Frozen autoencoder with the global latent scale.
        images: n images.
        views: How many latents an image gets, V ≥ 1; with no augmentation it gets one.
        augmentation: Kind of random views.
        precision: "auto", "fp32" or "bf16".
        seed: Draws the views.
        on_batch: Called with (images encoded, images in all), views counted.

    Returns:
        (V, n, c, h, w) float16; index 0 is the image as it is.
    """
    device = codec.mean.device
    generator = torch.Generator().manual_seed(seed)
    views = 1 if augmentation == "none" else views
    if not len(images):
        height, width, channels = images.pixels.shape[1:]
        blank = torch.zeros(1, channels, height, width, device=device)
        return torch.empty(views, 0, *codec.encode(blank).shape[1:], dtype=torch.float16)
    all_views = []
    for view in range(views):
        kind = "none" if view == 0 else augmentation
        encoded = []
        for start in range(0, len(images), BATCH):
            chosen = torch.arange(start, min(start + BATCH, len(images)))
            batch = augment(images.take(chosen), kind, generator).to(device)
            with autocast(precision, device):
                encoded.append(codec.encode(batch).half().cpu())
            if on_batch:
                on_batch(view * len(images) + start + len(chosen), views * len(images))
        all_views.append(torch.cat(encoded))
    return torch.stack(all_views).contiguous()

"""Encodes a site's images once: all without augmentation, and random views of the labelled."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.data.augmentation import augment
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.models import LatentCodec

BATCH = 128

OnBatch = Callable[[int], None]
"""Told after each batch how many images it held."""


@torch.no_grad()
def encode_images(
    codec: LatentCodec, images: ImageSet, on_batch: OnBatch = lambda count: None
) -> Tensor:
    """Latents (n, c, h, w) float16 of n images as they are."""
    return _encode(codec, images, "none", torch.Generator(), on_batch)


@torch.no_grad()
def encode_views(
    codec: LatentCodec,
    images: ImageSet,
    *,
    views: int,
    augmentation: str,
    seed: int,
    plain: bool = True,
    on_batch: OnBatch = lambda count: None,
) -> Tensor:
    """Encodes random views of each image, by default the image itself first.

    Args:
        codec: Frozen autoencoder with the global latent scale.
        images: n images.
        views: How many latents an image gets, V ≥ 1; with no augmentation it gets one.
        augmentation: Kind of random views.
        seed: Draws the views.
        plain: Whether the first view is the image without augmentation.
        on_batch: Told after each batch of views.

    Returns:
        (V, n, c, h, w) float16.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = ["none"] if augmentation == "none" else [augmentation] * views
    if plain:
        kinds[0] = "none"
    return torch.stack([_encode(codec, images, kind, generator, on_batch) for kind in kinds])


def _encode(
    codec: LatentCodec,
    images: ImageSet,
    augmentation: str,
    generator: torch.Generator,
    on_batch: OnBatch,
) -> Tensor:
    device = codec.mean.device
    height, width, channels = images.pixels.shape[1:]
    blank = torch.zeros(1, channels, height, width, device=device)
    encoded = [codec.encode(blank)[:0].half().cpu()]  # the shape, where there are no images
    for chosen in torch.arange(len(images)).split(BATCH):
        if len(chosen):
            batch = augment(images.take(chosen), augmentation, generator).to(device)
            encoded.append(codec.encode(batch).half().cpu())
            on_batch(len(chosen))
    return torch.cat(encoded).contiguous()

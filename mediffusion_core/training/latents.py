"""Encodes a site's images once: all without augmentation, and random views of the labelled."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mediffusion_core.data.augmentation import augment, has_random_marks
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.models import LatentCodec

BATCH = 128

OnBatch = Callable[[int], None]
"""Told after each batch how many images it held."""

Seed = int | Callable[[int, int], int]
"""Of all views, or by view and position."""

Augmented = Callable[[Tensor, Tensor], Tensor]
"""Images (B, C, H, W) at the positions (B,) to their views."""


@torch.no_grad()
def encode_images(
    codec: LatentCodec,
    images: ImageSet,
    on_batch: OnBatch = lambda count: None,
    *,
    apart: bool = False,
) -> Tensor:
    """Latents (n, c, h, w) float16 of n images as they are.

    Args:
        codec: Frozen autoencoder with the global latent scale.
        images: n images.
        on_batch: Told after each batch how many images it held.
        apart: Whether a latent depends on its image alone. The last bit of a convolution depends on
            the size of the batch, so the last batch is then filled up with blanks.
    """
    return _encode(codec, images, lambda batch, chosen: batch, on_batch, apart)


@torch.no_grad()
def encode_views(
    codec: LatentCodec,
    images: ImageSet,
    *,
    views: int,
    augmentation: str,
    seed: Seed,
    plain: bool = True,
    on_batch: OnBatch = lambda count: None,
) -> Tensor:
    """Encodes random views of each image, by default the image itself first.

    Args:
        codec: Frozen autoencoder with the global latent scale.
        images: n images.
        views: How many latents an image gets, V ≥ 1; with no augmentation it gets one.
        augmentation: Kind of random views.
        seed: Draws the views. As a function of view and position in the set it is a seed of one
            view, which then depends on its image alone.
        plain: Whether the first view is the image without augmentation. It is not where views have
            random marks: the image would keep its own.
        on_batch: Told after each batch of views.

    Returns:
        (V, n, c, h, w) float16.
    """
    kinds = ["none"] if augmentation == "none" else [augmentation] * views
    if plain and not has_random_marks(augmentation):
        kinds[0] = "none"
    if isinstance(seed, int):
        generator = torch.Generator().manual_seed(seed)
        drawn = [_views_in_turn(kind, generator) for kind in kinds]
    else:
        drawn = [_views_apart(kind, partial(seed, view)) for view, kind in enumerate(kinds)]
    apart = not isinstance(seed, int)
    return torch.stack([_encode(codec, images, one, on_batch, apart) for one in drawn])


def _views_in_turn(kind: str, generator: torch.Generator) -> Augmented:
    return lambda batch, chosen: augment(batch, kind, generator)


def _views_apart(kind: str, seed_at: Callable[[int], int]) -> Augmented:
    """Each view by the seed of its image's position."""
    return lambda batch, chosen: torch.cat(
        [
            augment(one[None], kind, torch.Generator().manual_seed(seed_at(position)))
            for one, position in zip(batch, chosen.tolist(), strict=True)
        ]
    )


def _encode(
    codec: LatentCodec, images: ImageSet, augmented: Augmented, on_batch: OnBatch, apart: bool
) -> Tensor:
    device = codec.mean.device
    height, width, channels = images.pixels.shape[1:]
    blank = torch.zeros(1, channels, height, width, device=device)
    encoded = [codec.encode(blank)[:0].half().cpu()]  # the shape, where there are no images
    for chosen in torch.arange(len(images)).split(BATCH):
        if len(chosen):
            batch = augmented(images.take(chosen), chosen).to(device)
            if apart:
                batch = torch.cat([batch, blank.expand(BATCH - len(batch), -1, -1, -1)])
            encoded.append(codec.encode(batch)[: len(chosen)].half().cpu())
            on_batch(len(chosen))
    return torch.cat(encoded).contiguous()

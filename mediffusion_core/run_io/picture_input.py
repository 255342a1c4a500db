"""From images as a user has them to those that a model takes, as `predict` reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.any_image import read_image
from mediffusion_core.data.drawn_masks import DrawnMask, editable_pixels
from mediffusion_core.data.files import shown
from mediffusion_core.data.image_set import as_batch
from mediffusion_core.data.store.grey_levels import Window
from mediffusion_core.data.store.images import ImageError, fit, to_8_bit
from mediffusion_core.settings import Settings

Picture = Image.Image | str | Path
"""An image of any size: Pillow's, or the path of a JPEG, PNG, TIFF, WebP or DICOM file."""

Pictures = Tensor | Picture | Sequence[Picture]
"""Images as a user has them: (N, C, H, W) in [0, 1] of the model's size, or pictures."""


def batch_of(images: Pictures, settings: Settings) -> Tensor:
    """Images as training saw them: (N, C, H, W) in [0, 1]; of a tensor nothing is resized."""
    size, channels = settings.data.image_size, settings.data.channels
    if isinstance(images, Tensor):
        wanted = (channels, size, size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted or not len(images):
            raise UserError(
                f"images of shape {tuple(images.shape)}: this model takes (N, {channels}, {size}, "
                f"{size}) in [0, 1], or Pillow's images of any size"
            )
        if not images.is_floating_point() or not 0 <= images.min() <= images.max() <= 1:
            raise UserError("images must be floating-point numbers in [0, 1]; divide bytes by 255")
        return images.float()
    pictures = _listed(images)
    if not pictures or not all(isinstance(one, Picture) for one in pictures):
        raise UserError(
            "images must be a tensor (N, C, H, W), a Pillow image, a path or a list of them"
        )
    pixels = [_pixels(one, settings.data.window) for one in pictures]
    return as_batch(np.stack([fit(one, size, channels) for one in pixels]))


def editable_of(
    images: Pictures,
    edit: DrawnMask | Sequence[DrawnMask] | None,
    keep: DrawnMask | Sequence[DrawnMask] | None,
    settings: Settings,
) -> Tensor | None:
    """The pixels of images that may change, booleans (N, 1, S, S); None without any mask.

    Args:
        images: N images, as `batch_of` takes them.
        edit: One mask for all, or one for each image; as `editable_pixels` takes it.
        keep: The same.
        settings: Of the model.

    Raises:
        UserError: as `editable_pixels`, or if there are not as many masks as images.
    """
    if edit is None and keep is None:
        return None
    size = settings.data.image_size
    if isinstance(images, Tensor):
        shapes = [(size, size)] * len(images)
    else:
        decoded = (_pixels(one, settings.data.window) for one in _listed(images))
        shapes = [(len(one), len(one[0])) for one in decoded]
    edits, keeps = (_for_each(masks, len(shapes)) for masks in (edit, keep))
    parts = [
        editable_pixels(edited, kept, shape, size)
        for edited, kept, shape in zip(edits, keeps, shapes, strict=True)
    ]
    return torch.from_numpy(np.stack([part for part in parts if part is not None]))[:, None]


def _for_each(
    masks: DrawnMask | Sequence[DrawnMask] | None, count: int
) -> Sequence[DrawnMask | None]:
    if masks is None or isinstance(masks, Picture):
        return [masks] * count
    if any(one is None for one in masks):
        raise UserError("a list of masks has one for each image; leave the list out for none")
    if len(masks) != count:
        raise UserError(f"{len(masks)} masks for {count} images: allowed are 1 and {count}")
    return masks


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    return [images] if isinstance(images, Picture) else list(images)


def _pixels(picture: Picture, window: Window | None) -> NDArray[np.uint8]:
    """A picture as `predict` reads it, (H, W) or (H, W, 3)."""
    try:
        if isinstance(picture, Image.Image):
            return to_8_bit(picture, window)
        return read_image(Path(picture), window)
    except ImageError as error:
        named = "an image" if isinstance(picture, Image.Image) else shown(picture)
        raise UserError(f"{named} cannot be used: {error}") from None

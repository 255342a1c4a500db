"""How many cells this machine can run at once."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.machine import available_cores, available_memory
from mediffusion_core.inference.joint_model import build_joint
from mediffusion_core.models.autoencoder import Autoencoder
from mediffusion_core.settings import Settings
from simulations.engine.sizing import Sizes

PROCESS = 0.9e9
"""Bytes of a process with all libraries and no network, at most."""
WORKING = 2
"""Memory of a training step over that of the activations kept for its backward pass."""


@dataclass(frozen=True)
class Capacity:
    """The number of cells at once, and the limits that it comes from."""

    workers: int
    limits: str


def capacity(settings: Sequence[Settings], num_classes: int, images: int, threads: int) -> Capacity:
    """As many cells as cores and memory allow; one where a cell computes on a GPU.

    Args:
        settings: Of all cells.
        num_classes: Number of classes or findings.
        images: Number of images of the largest site.
        threads: Largest number of threads of a cell.
    """
    if any(resolve_device(one.device).type == "cuda" for one in settings):
        return Capacity(1, "on one GPU")
    distinct = {_sizes(one): one for one in settings}
    needed = max(memory_of_cell(one, num_classes, images) for one in distinct.values())
    cores, memory = available_cores(), available_memory()
    return Capacity(
        max(1, min(cores // threads, int(memory // needed))),
        f"{cores} cores, about {needed / 1e9:.1f} GB a cell of {memory / 1e9:.1f} GB available",
    )


def memory_of_cell(settings: Settings, num_classes: int, images: int) -> float:
    """Estimated bytes of a run within one process, rather too many than too few.

    The process, the server's state, a site's networks with their optimizers, the activations of its
    larger training step, and the latents of its images.

    Args:
        settings: Of the run.
        num_classes: Number of classes or findings.
        images: Number of images of the largest site.
    """
    sizes, joint = Sizes.of(settings, num_classes), settings.training.joint
    rows, side = joint.batch_size + joint.labelled_batch_size, settings.data.image_size
    with torch.device("meta"):  # no weight is allocated
        network = build_joint(settings, num_classes)
        autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
        latents = torch.empty(rows, *settings.latent_shape)  # (B, c, h, w)
        timesteps = torch.zeros(rows, dtype=torch.long)
        shape = (settings.training.autoencoder.batch_size, settings.data.channels, side, side)
        images_of_step = torch.empty(shape)  # (B, C, H, W)
        activations = max(
            _kept(lambda: network(latents, timesteps)),
            _kept(lambda: autoencoder.decode(autoencoder.encode(images_of_step).mode())),
        )
    if settings.privacy.enabled:  # a gradient for each unit
        weights = sum(one.nbytes for one in network.parameters())
        activations += settings.privacy.physical_batch_size * weights
    views = images * joint.augmented_views * latents[0].nbytes
    site = 2 * (sizes.decoded + sizes.codec)
    server = sizes.memory(settings.num_participants)
    return PROCESS + server + site + WORKING * activations + views


def _kept(forward: Callable[[], object]) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    storages = [tensor.untyped_storage() for tensor in kept]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _sizes(settings: Settings) -> Hashable:
    """The settings that the estimate depends on."""
    joint, data = settings.training.joint, settings.data
    return (
        settings.model,
        settings.privacy,
        settings.num_participants,
        (data.image_size, data.channels, settings.federation.compression),
        (joint.batch_size, joint.labelled_batch_size, joint.augmented_views, joint.alignment),
        (joint.needs_average, joint.control_variates, settings.training.autoencoder.batch_size),
    )

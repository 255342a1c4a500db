"""The digest of a trained model as it travels, by which a signed run names the model."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from mediffusion_core.messaging.protocol import MODEL


def model_digest(components: Mapping[str, Mapping[str, Tensor]]) -> str:
    """SHA-256 over names, types, shapes and values of the components of `protocol.MODEL`."""
    sha = hashlib.sha256()
    for component in MODEL:
        for name, value in sorted(components[component].items()):
            sha.update(f"{component}.{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha.update(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return sha.hexdigest()

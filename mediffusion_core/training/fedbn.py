"""Normalisation layers that stay at the site: FedBN, arXiv 2102.07623, for group normalisation.

Scanners differ in contrast and noise, which scale and shift can adjust. With
`federation.local_normalisation` a site starts each round of the joint stage from its own weights
and biases of the UNet's normalisation layers, with their moments, and from the global values of all
other parameters. It still sends its own, and the server averages them, since the public test set
and a new site need a whole model. The model evaluated there is not the site's.

The site's folder has one file for each round. A resumed run may ask for an earlier round than the
site's last one, so several files are kept, and the newest before the round is used.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mediffusion_core.messaging.moment_names import MEAN, SQUARE

StateDict = Mapping[str, Tensor]

FILES = "normalisation-{:06d}.safetensors"
KEPT = 3
"""Enough for a resume from the older of the server's two checkpoints, where the site had also
finished a round after the newer one."""


def normalisation_names(module: nn.Module) -> set[str]:
    """Names of the weights and biases of a module's group normalisations, and of their moments."""
    parameters = {
        f"{path}.{name}"
        for path, part in module.named_modules()
        if isinstance(part, nn.GroupNorm)
        for name, _ in part.named_parameters()
    }
    return parameters | {name + end for name in parameters for end in (MEAN, SQUARE)}


def keep_own(folder: Path, round_number: int, own: StateDict) -> None:
    """Writes a site's own values after a round, and removes files that no resume can need."""
    path = folder / FILES.format(round_number)
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in own.items()}, temporary)
    temporary.replace(path)
    files = _files(folder)
    later = [file for file in files if file > path]  # of an abandoned resume
    for file in [*later, *files[: -KEPT - len(later)]]:
        file.unlink()


def own_before(folder: Path, round_number: int) -> dict[str, Tensor]:
    """A site's own values after its newest round before the given one; empty if there is none."""
    earlier = [file for file in _files(folder) if file < folder / FILES.format(round_number)]
    return dict(load_file(earlier[-1])) if earlier else {}


def with_own(sent: StateDict, own: StateDict) -> dict[str, Tensor]:
    """A component as it was sent, with the site's own values instead of the global ones."""
    return {name: own.get(name, value) for name, value in sent.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("normalisation-*.safetensors"))

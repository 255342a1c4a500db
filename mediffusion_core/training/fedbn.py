"""Normalisation that stays a site's own: FedBN, arXiv 2102.07623, here for group normalisation.

Scanners differ in contrast and noise, and that is a matter of scale and shift. With
`federation.local_normalisation` a site continues in each round of the joint stage from its own
weights and biases of the UNet's normalisation layers and from their moments, and from the global
values of all else. It sends its own as before, and the server averages them as before, so that the
public test set and a new site have a model: what is judged there is not what the site sees.

The values stand in the site's folder, one file a round. A run that is continued from a checkpoint
asks for an earlier round than the site has seen, so some files are kept and the newest before the
round asked for counts.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mediffusion_core.messaging.moment_names import MEAN, SQUARE

StateDict = Mapping[str, Tensor]

FILES = "normalisation-{:06d}.safetensors"
KEPT = 3
"""Of the server's two checkpoints the older one may have to do, and a round begun after the newest
may have ended here alone."""


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
    """Writes a site's own values after a round, and drops what no continuation can ask for."""
    path = folder / FILES.format(round_number)
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in own.items()}, temporary)
    temporary.replace(path)
    files = _files(folder)
    later = [file for file in files if file > path]  # of a continuation that was given up
    for file in [*later, *files[: -KEPT - len(later)]]:
        file.unlink()


def own_before(folder: Path, round_number: int) -> dict[str, Tensor]:
    """A site's own values after its newest round before the given one; empty if there is none."""
    earlier = [file for file in _files(folder) if file < folder / FILES.format(round_number)]
    return dict(load_file(earlier[-1])) if earlier else {}


def with_own(sent: StateDict, own: StateDict) -> dict[str, Tensor]:
    """A component as it was sent, with the site's own values in the place of the global ones."""
    return {name: own.get(name, value) for name, value in sent.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("normalisation-*.safetensors"))

"""Normalisation layers that stay at the site: FedBN, arXiv 2102.07623, for group normalisation.

Scanners differ in contrast and noise, which scale and shift can adjust. With
`federation.local_normalisation` a site starts each round of the joint stage from its own weights
and biases of the UNet's normalisation layers, with their moments, and from the global values of all
other parameters. It still sends its own, and the server averages them, since the public test set
and a new site need a whole model. The model evaluated there is not the site's.

The site's folder has one file for each round. A resumed run may ask for an earlier round than the
site's last one, so several files are kept, and the newest sound one before the round is used.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.sealed_tensors import load_tensors, save_tensors
from mediffusion_core.messaging.moment_names import MEAN, SQUARE

StateDict = Mapping[str, Tensor]

FILES = "normalisation-{:06d}.safetensors"


def normalisation_names(module: nn.Module) -> set[str]:
    """Names of the weights and biases of a module's group normalisations, and of their moments."""
    parameters = {
        f"{path}.{name}"
        for path, part in module.named_modules()
        if isinstance(part, nn.GroupNorm)
        for name, _ in part.named_parameters()
    }
    return parameters | {name + end for name in parameters for end in (MEAN, SQUARE)}


def keep_own(folder: Path, round_number: int, own: StateDict, keep_last: int) -> None:
    """Writes a site's own values after a round, and removes files that no resume can need.

    Args:
        folder: The site's.
        round_number: Of the joint stage.
        own: Values and moments by name.
        keep_last: How many rounds the server can go back.
    """
    path = folder / FILES.format(round_number)
    save_tensors(path, own)
    files = _files(folder)
    later = [file for file in files if file > path]  # of an abandoned resume
    # One more, since the site may finish a round that the server then does not.
    for file in [*later, *files[: -keep_last - 1 - len(later)]]:
        file.unlink()


def own_before(
    folder: Path, round_number: int, report: Callable[[str], object]
) -> dict[str, Tensor]:
    """A site's own values after its newest round before the given one; empty if there is none.

    A damaged file is passed over, and `report` takes a line that names it.
    """
    earlier = [file for file in _files(folder) if file < folder / FILES.format(round_number)]
    for file in reversed(earlier):
        try:
            return load_tensors(file)[0]
        except UserError as error:
            report(f"{error}; an earlier round's are used")
    return {}


def with_own(sent: StateDict, own: StateDict) -> dict[str, Tensor]:
    """A component as it was sent, with the site's own values instead of the global ones."""
    return {name: own.get(name, value) for name, value in sent.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("normalisation-*.safetensors"))

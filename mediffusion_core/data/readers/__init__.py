"""Readers of one contract: a module with `read` for each data set, and its name in `READERS`."""

import logging
from collections.abc import Callable

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.dataset import Source
from mediffusion_core.data.readers import (
    chestxray14,
    chexpert,
    dicom,
    folder,
    isic2019,
    medmnist,
    phantom,
)
from mediffusion_core.settings import DataSettings, did_you_mean

__all__ = ["FINDS_CLASSES", "READERS", "read_source", "require_reader"]

READERS: dict[str, Callable[[DataSettings, int], Source]] = {
    "phantom": phantom.read,
    "isic2019": isic2019.read,
    "medmnist": medmnist.read,
    "chestxray14": chestxray14.read,
    "chexpert": chexpert.read,
    "folder": folder.read,
    "dicom": dicom.read,
}

FINDS_CLASSES = ("isic2019", "medmnist", "folder", "dicom")
"""Readers whose classes are those that occur, unless `data.classes` names them."""


logger = logging.getLogger(__name__)


def require_reader(name: str) -> None:
    """Checks that a reader has this name, as `data.source` gives it.

    Raises:
        UserError: naming the allowed names, and the nearest of them.
    """
    if name not in READERS:
        allowed = list(READERS)
        raise UserError(
            f"data.source={name}: no such reader; allowed: {', '.join(allowed)}"
            f"{did_you_mean(name, allowed)}"
        )


def read_source(settings: DataSettings, seed: int, secret: bytes | None = None) -> Source:
    """Reads the tables of the data set that `data.source` names; no image is opened yet.

    Args:
        settings: the data settings.
        seed: the run's seed; only phantoms depend on it.
        secret: of a deployed site, which only DICOM's pseudonyms depend on. None: the user's.

    Raises:
        UserError: unknown source, missing root, table or column, unknown class.
    """
    require_reader(settings.source)
    if settings.source == "dicom":
        source = dicom.read(settings, seed, secret)
    else:
        source = READERS[settings.source](settings, seed)
    for note in source.notes:
        if note.grade == "warning":
            logger.warning("%s: %s", settings.root, note.text)
    return source

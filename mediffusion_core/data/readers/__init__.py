"""Readers of one contract; a new data set is one module with `read` and one line here."""

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
from mediffusion_core.settings import DataSettings

__all__ = ["READERS", "read_source"]

READERS: dict[str, Callable[[DataSettings, int], Source]] = {
    "phantom": phantom.read,
    "isic2019": isic2019.read,
    "medmnist": medmnist.read,
    "chestxray14": chestxray14.read,
    "chexpert": chexpert.read,
    "folder": folder.read,
    "dicom": dicom.read,
}


logger = logging.getLogger(__name__)


def read_source(settings: DataSettings, seed: int) -> Source:
    """Reads the tables of the data set that `data.source` names; no image is opened yet.

    Args:
        settings: the data settings.
        seed: the run's seed; only phantoms depend on it.

    Raises:
        UserError: unknown source, missing root, table or column, unknown class.
    """
    if settings.source not in READERS:
        raise UserError(f"data.source={settings.source}: allowed are {', '.join(READERS)}")
    source = READERS[settings.source](settings, seed)
    for note in source.notes:
        if note.grade == "warning":
            logger.warning("%s: %s", settings.root, note.text)
    return source

"""ISIC 2019 in its official layout, with the acquisition centres of Fed-ISIC2019.

Folder: `ISIC_2019_Training_GroundTruth.csv` (one-hot), `ISIC_2019_Training_Metadata.csv`
(`lesion_id`), and the images, in `ISIC_2019_Training_Input` or anywhere below `data.root`; for
natural sites `centers.csv` (`image`, `center_name`), and for regions `lesion_masks.npz` (see
`regions.packed_masks`). Sources: Tschandl
et al. 2018 (arXiv:1803.10417), Codella et al. 2018 (arXiv:1710.05006), Hernández-Pérez et al. 2024
(BCN20000); centres: FLamby (arXiv:2210.04620).
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.attributes import AGE, SEX, Attributes, attributes_of
from mediffusion_core.data.checks.check_result import CheckResult
from mediffusion_core.data.dataset import Move, Source, UnitNames
from mediffusion_core.data.files import list_folder
from mediffusion_core.data.readers.label_cells import refuse_unknown
from mediffusion_core.data.readers.mirrors import find_home, find_images, unused
from mediffusion_core.data.readers.tables import data_root, file_stamp, image_names, read_table
from mediffusion_core.data.regions import packed_masks
from mediffusion_core.data.store.images import load_file
from mediffusion_core.settings import DataSettings

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
UNKNOWN = "UNK"
IMAGES = "ISIC_2019_Training_Input"
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
CENTRES = "centers.csv"
MASKS = "lesion_masks.npz"

logger = logging.getLogger(__name__)


def read(settings: DataSettings, seed: int) -> Source:
    """ISIC 2019 under `data.root`: one class an image, grouped by lesion.

    The classes are those of `data.classes`, else those that occur.

    An image that is only marked `UNK` has a missing label. A lesion without an id is its
    image's own. A lesion that stands in several centres goes whole to the one that holds most
    of its images, the first by name where they tie. Regions are lesions, in the size of the
    masks.

    Raises:
        UserError: missing folder, table or column; unknown class; label that is not one-hot;
            an image without a centre; a damaged file of masks.
    """
    root = data_root(settings)
    home = find_home(root, TRUTH)
    names, classes, labels = _truth(home / TRUTH, settings.classes)
    lesions, attributes, unread = _metadata(home / METADATA, names)
    centres: tuple[str, ...] | None = None
    moves: tuple[Move, ...] = ()
    if (home / CENTRES).is_file():
        centres, moves = unite_lesions(names, lesions, _centres(home / CENTRES, names))
    else:
        logger.info("%s: no %s, so there are no natural sites", root, CENTRES)
    for move in moves:
        logger.info("lesion %s: image %s moves from %s to %s", move.group, move.image_id,
                    move.given, move.centre)  # fmt: skip

    files = list_folder(root, masks=False)
    places = (home / IMAGES, home / IMAGES / IMAGES)  # some mirrors double it
    paths = find_images(root, files, names, places)
    has_masks = (home / MASKS).is_file()
    known = (TRUTH, METADATA, *([MASKS] if has_masks else []))
    tables = {name: (home / name).read_bytes() for name in known}
    read_too = [str((home / name).relative_to(root)) for name in (*known, CENTRES)]
    return Source(
        name="isic2019",
        classes=classes,
        multi_label=False,
        image_ids=names,
        labels=labels,
        groups=lesions,
        names=UnitNames("lesion"),
        centres=centres,
        load=partial(load_file, root, paths, settings.window),
        fingerprint=fingerprint(
            reader="isic2019",
            root=str(root),
            window=settings.window,
            centres=centres,
            files=[(path, file_stamp(root, path)) for path in paths],
            **tables,
            **({"classes": classes} if settings.classes else {}),  # else they follow from the table
        ),
        moves=moves,
        notes=(*unused(files, paths, read_too), *unread),
        attributes=attributes,
        regions=packed_masks(home / MASKS, names) if has_masks else None,
    )


def unite_lesions(
    names: Sequence[str], lesions: Sequence[str], given: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Move, ...]]:
    """Gives each lesion whole to one centre.

    Args:
        names: N images.
        lesions: their lesions.
        given: their centres according to the table.

    Returns:
        The N centres by majority of the lesion's images (ties: first by name), and the images
        that moved.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for lesion, centre in zip(lesions, given, strict=True):
        votes[lesion][centre] += 1
    winner = {
        lesion: min(counts, key=lambda centre: (-counts[centre], centre))
        for lesion, counts in votes.items()
    }
    centres = tuple(winner[lesion] for lesion in lesions)
    rows = zip(names, lesions, given, centres, strict=True)
    return centres, tuple(Move(*row) for row in rows if row[2] != row[3])


def _truth(
    path: Path, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float32]]:
    """Names (N,), classes (C,) and labels (N, C), of the classes given or of those that occur."""
    columns = (*CLASSES, UNKNOWN)
    rows = read_table(path, ("image", *columns))
    for column in rows[0]:
        if column not in ("image", *columns):
            raise UserError(f"{path}: unknown class {column!r}, allowed are {', '.join(columns)}")
    names = image_names(path, [row["image"] for row in rows])
    try:
        values = np.array([[row[name] for name in columns] for row in rows]).astype(np.float32)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    wrong = np.flatnonzero(~np.isin(values, (0, 1)).all(axis=1) | (values.sum(axis=1) > 1))
    if wrong.size:
        raise UserError(f"{path}: the label of {names[wrong[0]]} is not one-hot")

    occurring = [name for name, column in zip(CLASSES, values.T, strict=False) if column.any()]
    if not occurring:
        raise UserError(f"{path}: no image has a class")
    for name in classes or ():
        refuse_unknown(CLASSES, name, "data.classes")
    for name in occurring:
        refuse_unknown(classes or CLASSES, name, str(path))
    chosen = classes or tuple(occurring)
    labels = values[:, [CLASSES.index(name) for name in chosen]]
    labels[labels.sum(axis=1) == 0] = np.nan
    return names, chosen, labels


def _metadata(
    path: Path, names: Sequence[str]
) -> tuple[tuple[str, ...], Attributes, tuple[CheckResult, ...]]:
    """The lesion of each image, its attributes, and notes on these.

    An image whose cell is empty is a lesion of its own.
    """
    known = {row["image"]: row for row in read_table(path, ("image", "lesion_id"))}
    without = [name for name in names if name not in known]
    if without:
        raise UserError(f"{path}: {len(without)} images are missing, the first is {without[0]}")
    lesions = tuple(known[name]["lesion_id"] or name for name in names)
    columns = {SEX: "sex", AGE: "age_approx"}
    cells = {key: [known[name].get(one, "") for name in names] for key, one in columns.items()}
    return lesions, *attributes_of(cells)


def _centres(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    rows = read_table(path, ("image", "center_name"))
    known = {row["image"]: row["center_name"] for row in rows}
    without = [name for name in names if not known.get(name)]
    if without:
        raise UserError(f"{path}: {len(without)} images have no centre, the first is {without[0]}")
    return tuple(known[name] for name in names)

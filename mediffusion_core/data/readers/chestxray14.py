"""NIH ChestX-ray14 in its official layout (Wang et al. 2017, arXiv:1705.02315).

Folder: `Data_Entry_2017*.csv` and the PNG files anywhere below `data.root`, such as in `images/` or
the twelve `images_*/` of the download. Where they are there, `train_val_list.txt` and
`test_list.txt` give the official splits, and `BBox_List_2017.csv` the regions.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.attributes import AGE, SEX, attributes_of
from mediffusion_core.data.dataset import Source, UnitNames, first_shared
from mediffusion_core.data.files import list_folder
from mediffusion_core.data.readers.mirrors import find_home, find_images, unused
from mediffusion_core.data.readers.tables import data_root, file_stamp, image_names, read_table
from mediffusion_core.data.regions import Box, fill_boxes
from mediffusion_core.data.store.images import load_file
from mediffusion_core.settings import DataSettings

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis",
    "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
HEALTHY = "No Finding"
NAME, LABELS, PATIENT = "Image Index", "Finding Labels", "Patient ID"
LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
BOXES = "BBox_List_2017.csv"
BOX_LABEL = "CheckResult Label"
BOX_SIDES = ("Bbox [x", "y", "w", "h]")
"""The published header is `Bbox [x,y,w,h]`, which a CSV file reads as four columns."""
BOX_FINDINGS = {"Infiltrate": "Infiltration", **{finding: finding for finding in FINDINGS}}
"""Name of a finding in the table of boxes to its name among the labels."""
Marked = tuple[str, Box]
"""A finding and where it is."""
ORIGINAL_SIDE = 1024
"""Boxes are in pixels of the published images, which are squares of this side."""


def read(settings: DataSettings, seed: int) -> Source:
    """ChestX-ray14 under `data.root`: 14 findings, several an image; grouped by patient.

    An empty `Finding Labels` is a missing label; `No Finding` is a label of fourteen zeros. The
    official lists know two sides alone: `train_val_list.txt` is "train".

    Raises:
        UserError: missing folder, table or column; unknown finding; image without a patient; an
            image on neither or both of the lists, or a patient on both; a box that is none.
    """
    root = data_root(settings)
    home = find_home(root, "Data_Entry_2017*.csv")
    tables = sorted(home.glob("Data_Entry_2017*.csv"))
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise UserError(f"data.root={root}: needs one Data_Entry_2017*.csv, found {found}")
    table = tables[0]
    rows = read_table(table, (NAME, LABELS, PATIENT))
    names = image_names(table, [row[NAME] for row in rows])
    for row in rows:
        if not row[PATIENT]:
            raise UserError(f"{table}: image {row[NAME]} has no {PATIENT}")

    patients = tuple(row[PATIENT] for row in rows)
    has_boxes = (home / BOXES).is_file()
    has_lists = all((home / name).is_file() for name in LISTS)
    more = [*([BOXES] if has_boxes else []), *(LISTS if has_lists else [])]

    files = list_folder(root, masks=False)
    places = (home / "images", home)
    paths = find_images(root, files, names, places)
    read_too = [str((home / name).relative_to(root)) for name in (table.name, *more)]
    attributes, unread = attributes_of(_cells(rows))
    return Source(
        name="chestxray14",
        classes=FINDINGS,
        multi_label=True,
        image_ids=names,
        labels=_labels(table, [row[LABELS] for row in rows]),
        groups=patients,
        names=UnitNames("patient"),
        centres=None,
        load=partial(load_file, root, paths, settings.window),
        fingerprint=fingerprint(
            reader="chestxray14",
            root=str(root),
            window=settings.window,
            table=table.read_bytes(),
            files=[(path, file_stamp(root, path)) for path in paths],
            **{name: (home / name).read_bytes() for name in more},
        ),
        notes=(*unused(files, paths, read_too), *unread),
        attributes=attributes,
        splits=_splits(home, names, patients) if has_lists else None,
        regions=partial(_region, root, paths, _boxes(home / BOXES, names)) if has_boxes else None,
    )


def _cells(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Sex and age of each image, as far as the table has their columns."""
    columns = {SEX: ("Patient Gender", "Patient Sex"), AGE: ("Patient Age",)}
    return {
        key: [next((row[one] for one in names if one in row), "") for row in rows]
        for key, names in columns.items()
    }


def _splits(root: Path, names: Sequence[str], patients: Sequence[str]) -> tuple[str, ...]:
    listed = {split: _listed(root / name) for name, split in LISTS.items()}
    both = " and ".join(LISTS)
    splits: list[str] = []
    for name in names:
        sides = [split for split, images in listed.items() if name in images]
        if len(sides) != 1:
            where = "both" if sides else "neither"
            raise UserError(f"data.root={root}: {name} is in {where} of {both}")
        splits += sides
    if shared := first_shared(patients, splits):
        patient = patients[shared[0]]
        raise UserError(f"data.root={root}: {PATIENT} {patient} has images in both {both}")
    return tuple(splits)


def _listed(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a list of images ({error})") from None


def _boxes(path: Path, names: Sequence[str]) -> dict[int, tuple[Marked, ...]]:
    """Boxes of the images that the table lists, by the image's index."""
    index_of = {name: index for index, name in enumerate(names)}
    boxes: dict[int, tuple[Marked, ...]] = defaultdict(tuple)
    for row in read_table(path, (NAME, BOX_LABEL, *BOX_SIDES)):
        if row[BOX_LABEL] not in BOX_FINDINGS:
            allowed = ", ".join(BOX_FINDINGS)
            raise UserError(f"{path}: unknown finding {row[BOX_LABEL]!r}, allowed are {allowed}")
        if row[NAME] in index_of:
            marked = (BOX_FINDINGS[row[BOX_LABEL]], _box(path, row))
            boxes[index_of[row[NAME]]] += (marked,)
    return dict(boxes)


def _box(path: Path, row: Mapping[str, str]) -> Box:
    try:
        x, y, w, h = (float(row[side]) for side in BOX_SIDES)
        fits = all(0 <= start < ORIGINAL_SIDE for start in (x, y))
        fits = fits and all(0 < length < math.inf for length in (w, h))
    except ValueError:
        fits = False
    if not fits:
        given = ", ".join(row[side] for side in BOX_SIDES)
        raise UserError(
            f"{path}: box of {row[NAME]} is {given!r}, allowed are left and top from 0 to "
            f"{ORIGINAL_SIDE}, width and height above 0"
        )
    return x, y, w, h


def _region(
    root: Path,
    paths: tuple[str, ...],
    boxes: Mapping[int, tuple[Marked, ...]],
    index: int,
    finding: str | None,
) -> NDArray[np.bool_] | None:
    marked = [box for name, box in boxes.get(index, ()) if finding in (None, name)]
    if not marked:
        return None
    height, width = load_file(root, paths, None, index).shape[:2]
    return fill_boxes(marked, ORIGINAL_SIDE, (height, width))


def _labels(table: Path, texts: list[str]) -> NDArray[np.float32]:
    column = {finding: index for index, finding in enumerate(FINDINGS)}
    labels = np.zeros((len(texts), len(FINDINGS)), np.float32)
    for row, text in enumerate(texts):
        if not text:
            labels[row] = np.nan
            continue
        for finding in text.split("|"):
            if finding in column:
                labels[row, column[finding]] = 1
            elif finding != HEALTHY:
                allowed = ", ".join((*FINDINGS, HEALTHY))
                raise UserError(f"{table}: unknown finding {finding!r}, allowed are {allowed}")
    return labels

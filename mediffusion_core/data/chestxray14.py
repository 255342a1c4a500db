"""NIH ChestX-ray14 in its official layout (Wang et al. 2017, arXiv:1705.02315).

Folder: `Data_Entry_2017*.csv` and the PNG files in `images/`, in the twelve `images_*/images/` of
the download, or beside the table.
"""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.contract import Source, fingerprint
from mediffusion_core.data.images import load_file
from mediffusion_core.data.tables import data_root, image_names, list_files, read_table
from mediffusion_core.errors import UserError
from mediffusion_core.settings import DataSettings

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis",
    "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
HEALTHY = "No Finding"
NAME, LABELS, PATIENT = "Image Index", "Finding Labels", "Patient ID"


def read(settings: DataSettings, seed: int) -> Source:
    """ChestX-ray14 under `data.root`: 14 findings, several an image; grouped by patient.

    An empty `Finding Labels` is a missing label; `No Finding` is a label of fourteen zeros.

    Raises:
        UserError: missing folder, table or column; unknown finding; image without a patient.
    """
    root = data_root(settings)
    tables = sorted(root.glob("Data_Entry_2017*.csv"))
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise UserError(f"data.root={root}: needs one Data_Entry_2017*.csv, found {found}")
    table = tables[0]
    rows = read_table(table, (NAME, LABELS, PATIENT))
    names = image_names(table, [row[NAME] for row in rows])
    for row in rows:
        if not row[PATIENT]:
            raise UserError(f"{table}: image {row[NAME]} has no {PATIENT}")

    folders = [root / "images", *sorted(root.glob("images_*/images")), root]
    files = list_files(root, [folder for folder in folders if folder.is_dir()], ".png")
    paths = tuple(files[name][0] if name in files else name for name in names)
    return Source(
        name="chestxray14",
        classes=FINDINGS,
        multi_label=True,
        image_ids=names,
        labels=_labels(table, [row[LABELS] for row in rows]),
        groups=tuple(row[PATIENT] for row in rows),
        centres=None,
        load=partial(load_file, root, paths, 2 * settings.image_size),
        fingerprint=fingerprint(
            reader="chestxray14",
            root=str(root),
            table=table.read_bytes(),
            files=sorted(files.values()),
        ),
    )


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

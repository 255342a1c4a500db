"""CheXpert in its official layout (Irvin et al. 2019, arXiv:1901.07031).

Folder: `train.csv` and, where they are there, `valid.csv` and `test.csv`, with images such as
`train/patient00001/study1/view1_frontal.jpg`. `data.root` is that folder, which is published as
`CheXpert-v1.0` or `CheXpert-v1.0-small`, or one above it. The host's batches may stand side by side
(`CheXpert-v1.0 batch 1 (validate & csv)`, `CheXpert-v1.0 batch 2 (train 1)/patient00001`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.attributes import AGE, SEX, attributes_of
from mediffusion_core.data.dataset import Source, UnitNames, first_shared
from mediffusion_core.data.files import list_folder
from mediffusion_core.data.readers.mirrors import (
    find_home,
    looked_in,
    patient_homes,
    unused,
)
from mediffusion_core.data.readers.tables import data_root, file_stamp, read_table
from mediffusion_core.data.store.images import load_file
from mediffusion_core.settings import DataSettings, Uncertain, did_you_mean

FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
TABLES = {"train.csv": "train", "valid.csv": "validation", "test.csv": "test"}
PATH = "Path"
LAYOUT = re.compile(
    r"(?:(CheXpert-v1\.0[^/\\\0]*)/)?"
    r"((?:train|valid|test)/(patient\d+)/study\d+/\w+\.(?:jpg|jpeg|png))",
    re.ASCII,
)
UNCERTAIN = -1.0
MEANING = {
    "": 0.0, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0, "-1": UNCERTAIN, "-1.0": UNCERTAIN,
}  # fmt: skip
POLICY: dict[Uncertain, float] = {"zeros": 0.0, "ones": 1.0, "ignore": np.nan}


def read(settings: DataSettings, seed: int) -> Source:
    """CheXpert under `data.root`: 13 observations, several an image; grouped by patient.

    `No Finding` is no class: it is a label of zeros. An empty cell is an observation that the
    report does not mention; it is taken as absent, since the paper trains on 0, 1 and uncertain
    alone. The uncertain (-1) become what `data.uncertain` and `data.uncertain_by_finding` say.
    Frontal and lateral views are both read.

    Raises:
        UserError: missing folder, table or column; a path or value that is not CheXpert's; an
            image listed twice; a patient in two tables; an unknown finding in the settings.
    """
    policies = _policies(settings)
    root = data_root(settings)
    home = find_home(root, "train.csv")
    tables = [home / name for name in TABLES if name == "train.csv" or (home / name).is_file()]
    images: dict[str, tuple[str, str, str]] = {}  # to patient, split and published folder
    labels = []
    cells: dict[str, list[str]] = {SEX: [], AGE: []}
    for table in tables:
        rows = read_table(table, (PATH, *FINDINGS))
        for row in rows:
            published, name, patient = _parts(table, row[PATH])
            if name in images:
                raise UserError(f"{table}: image {name} is listed twice")
            images[name] = (patient, TABLES[table.name], published)
            for key, column in ((SEX, "Sex"), (AGE, "Age")):
                cells[key].append(row.get(column, ""))
        labels.append(_labels(table, rows, policies))
    _refuse_shared_patients(home, images.values())

    paths = _where_they_are(root, _paths(root, home, images), tuple(images))
    files = list_folder(root, masks=False)
    read_too = [str(table.relative_to(root)) for table in tables]
    attributes, unread = attributes_of(cells)
    return Source(
        name="chexpert",
        classes=FINDINGS,
        multi_label=True,
        image_ids=tuple(images),
        labels=np.concatenate(labels),
        groups=tuple(patient for patient, _, _ in images.values()),
        names=UnitNames("patient"),
        centres=None,
        load=partial(load_file, root, paths, settings.window),
        fingerprint=fingerprint(
            reader="chexpert",
            root=str(root),
            window=settings.window,
            policies=policies,
            files=[(path, file_stamp(root, path)) for path in paths],
            **{table.name: table.read_bytes() for table in tables},
        ),
        splits=tuple(split for _, split, _ in images.values()),
        notes=(*unused(files, paths, read_too), *unread),
        attributes=attributes,
    )


def _policies(settings: DataSettings) -> tuple[Uncertain, ...]:
    for name in settings.uncertain_by_finding:
        if name not in FINDINGS:
            hint = did_you_mean(name, list(FINDINGS)) or f", allowed are {', '.join(FINDINGS)}"
            raise UserError(f"data.uncertain_by_finding: unknown finding {name!r}{hint}")
    return tuple(settings.uncertain_by_finding.get(name, settings.uncertain) for name in FINDINGS)


def _parts(table: Path, given: str) -> tuple[str, str, str]:
    """Published folder (or nothing), name and patient of one image."""
    parts = LAYOUT.fullmatch(given)
    if parts is None:
        raise UserError(
            f"{table}: {PATH} {given!r} is not like "
            "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
        )
    return parts[1] or "", parts[2], parts[3]


def _paths(root: Path, home: Path, images: Mapping[str, tuple[str, str, str]]) -> tuple[str, ...]:
    """Where the images lie, relative to the root."""
    folder = {}
    for published in {published for _, _, published in images.values()}:
        # Tables stand in the published folder, or were moved beside it.
        moved = bool(published) and home == root and (root / published).is_dir()
        folder[published] = Path(published) if moved else home.relative_to(root)
    return tuple(str(folder[published] / name) for name, (_, _, published) in images.items())


def _where_they_are(root: Path, paths: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The paths, with those of the host's batches for images that are not where the table says.

    Raises:
        UserError: not one image of a table is anywhere.
    """
    missing = [file_stamp(root, path) is None for path in paths]
    if not any(missing):
        return tuple(paths)
    homes = patient_homes(root)

    def moved(path: str, name: str) -> str:
        split, patient, rest = name.split("/", 2)
        home = homes.get((split, patient)) or homes.get(("", patient))
        return path if home is None else str((home / rest).relative_to(root))

    found = tuple(
        moved(path, name) if is_missing else path
        for path, name, is_missing in zip(paths, names, missing, strict=True)
    )
    for split in ("train", "valid", "test"):
        of_split = [index for index, name in enumerate(names) if name.startswith(f"{split}/")]
        if of_split and not any(file_stamp(root, found[index]) for index in of_split):
            first = of_split[0]
            raise UserError(
                f"data.root={root}: none of the {len(of_split)} images of {split}.csv is there; "
                f"looked for {paths[first]}, and for {names[first].split('/')[1]} in "
                f"{looked_in(homes, root)}. data.root must be the folder above the batches"
            )
    return found


def _refuse_shared_patients(home: Path, images: Iterable[tuple[str, str, str]]) -> None:
    patients, splits, _ = zip(*images, strict=True)
    if shared := first_shared(patients, splits):
        table_of = {split: name for name, split in TABLES.items()}
        both = " and ".join(table_of[splits[index]] for index in shared)
        raise UserError(f"data.root={home}: {patients[shared[0]]} is in both {both}")


def _labels(
    table: Path, rows: Sequence[Mapping[str, str]], policies: Sequence[Uncertain]
) -> NDArray[np.float32]:
    labels = np.empty((len(rows), len(FINDINGS)), np.float32)
    for index, row in enumerate(rows):
        for column, finding in enumerate(FINDINGS):
            if row[finding] not in MEANING:
                raise UserError(
                    f"{table}: {finding} of {row[PATH]} is {row[finding]!r}, "
                    "allowed are 1, 0, -1 and nothing"
                )
            labels[index, column] = MEANING[row[finding]]
    meant = np.array([POLICY[policy] for policy in policies], np.float32)
    return np.where(labels == UNCERTAIN, meant, labels)

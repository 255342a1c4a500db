"""A folder of DICOM files with a table of labels; who the patients are never leaves this module.

Groups and image names are pseudonyms, keyed with the site's secret: a patient id, and paths that
may contain one, stay in the files. A patient keeps the pseudonym where the folder moves.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.checks.check_result import CheckResult
from mediffusion_core.data.dataset import Source, UnitNames, first_shared
from mediffusion_core.data.files import UNLISTED, FolderFiles, list_folder, same_name, summary
from mediffusion_core.data.pseudonyms import hashed, user_secret
from mediffusion_core.data.readers.dicom_file import is_dicom, quiet_pydicom, read_elements
from mediffusion_core.data.readers.dicom_pixels import decode_dicom
from mediffusion_core.data.readers.label_cells import chosen_classes
from mediffusion_core.data.readers.labelled_table import LabelledTable, read_labelled_table
from mediffusion_core.data.readers.tables import data_root, file_stamp
from mediffusion_core.data.store.grey_levels import Window
from mediffusion_core.data.store.images import ImageError, confined
from mediffusion_core.settings import DataSettings

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
"""Endings that say DICOM, in small or capital letters; a file's content counts for more."""
DIRECTORY = "DICOMDIR"
"""The index that stands beside the files of a disc; it is DICOM itself, and has no pixels."""


@dataclass(frozen=True)
class _Header:
    uid: str
    patient: str


@dataclass(frozen=True)
class _Loader:
    """Decodes the image of an index; its text shows no path, since a path may name a patient."""

    root: Path
    paths: tuple[str | None, ...] = field(repr=False)
    window: Window | None

    def __call__(self, index: int) -> NDArray[np.uint8]:
        relative = self.paths[index]
        if relative is None:
            raise ImageError("no such DICOM file below data.root")
        return decode_dicom(confined(self.root, relative), self.window)


def read(settings: DataSettings, seed: int, secret: bytes | None = None) -> Source:
    """DICOM images below `data.root`, found by their content, whatever they are called.

    The images are those that `data.table` lists, by path relative to the root, with or without its
    ending, or by SOPInstanceUID. Without a table, but with `data.classes`, they are all there are
    and no label is known. An image belongs to the patient of the table's column, else to that of
    its own PatientID; without either it is its own group. The site's secret makes pseudonyms of the
    names; by default that of the user's simulated sites.

    Raises:
        UserError: missing pydicom, folder, table or DICOM file; what `read_labelled_table`
            refuses; an image listed twice or by a SOPInstanceUID of several files; a patient in
            two splits or sites.
    """
    root, secret = data_root(settings), secret or user_secret()
    files = find_files(root)
    if not files.images:
        raise UserError(f"data.root={root}: no folder with DICOM files")
    if settings.table is None:
        table, patients = _unlabelled(settings, files.images), None
    else:
        table, patients = _labelled(settings, root, secret)
    paths, headers = _match(settings, root, files.images, table.names, patients is None, secret)
    ids = tuple(
        image_id(path or name, secret) for path, name in zip(paths, table.names, strict=True)
    )
    if patients is None:
        patients = tuple(headers[path].patient if path else "" for path in paths)
    groups = tuple(
        _pseudonym("patient", patient, secret) if patient else own
        for patient, own in zip(patients, ids, strict=True)
    )
    unlisted = set(files.images) - set(paths)
    left_out = files.without(unlisted, UNLISTED).left_out
    notes = [*table.notes, *summary(left_out, named=False), *_without_patient(patients)]
    for what, given in (("split", table.splits), ("site", table.sites)):
        _refuse_shared_groups(settings, what, ids, groups, given)
    return Source(
        name="dicom",
        classes=table.classes,
        multi_label=table.multi_label,
        image_ids=ids,
        labels=table.labels,
        groups=groups,
        names=UnitNames("patient" if all(patients) else "image", _pseudonym("", "", secret)),
        centres=table.sites,
        load=_Loader(root, paths, settings.window),
        fingerprint=_fingerprint(settings, root, paths, table, groups),
        splits=table.splits,
        notes=tuple(notes),
        attributes=table.attributes,
        isolated=True,  # GDCM aborts on some broken lossless JPEGs
    )


def _fingerprint(
    settings: DataSettings,
    root: Path,
    paths: Sequence[str | None],
    table: LabelledTable,
    groups: Sequence[str],
) -> str:
    return fingerprint(
        reader="dicom",
        root=str(root),
        files=[(path, file_stamp(root, path)) for path in paths if path],
        window=settings.window,
        table=table.digest,
        columns=settings.columns.model_dump(exclude={"sex", "age"}),
        classes=settings.classes,
        multi_label=settings.multi_label,
        separator=settings.separator,
        groups=groups,
    )


def image_id(relative: str, secret: bytes) -> str:
    """The name of the image at a path relative to the root, 16 hexadecimal digits."""
    return _pseudonym("image", relative, secret)


def _pseudonym(what: str, text: str, secret: bytes) -> str:
    return hashed(f"{what}|{text}", secret)[:16]


def find_files(root: Path) -> FolderFiles:
    """The DICOM files below a resolved root, by their content; links that lead out are not."""
    is_image = lambda path: _is_below(root, path) and is_candidate(path)  # noqa: E731
    return list_folder(root, is_image, masks=False)


def _is_below(root: Path, path: Path) -> bool:
    # `realpath`, since `resolve` raises where links lead in a circle.
    return not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(root)


def is_candidate(path: Path) -> bool:
    """Whether a file is an image in DICOM by its content, or is called one by its ending."""
    if path.name == DIRECTORY:
        return False
    return is_dicom(path) or (path.suffix.lower() in SUFFIXES and path.is_file())


def _unlabelled(settings: DataSettings, names: tuple[str, ...]) -> LabelledTable:
    if settings.classes is None:
        raise UserError(
            "data.source=dicom needs data.table=<table of labels>, or data.classes where no image "
            "has a label"
        )
    classes = chosen_classes(settings, (), Path("data.classes"))
    labels = np.full((len(names), len(classes)), np.nan, np.float32)
    multi_label = settings.multi_label
    return LabelledTable(names, classes, multi_label, labels, None, None, None, digest=b"")


def _labelled(
    settings: DataSettings, root: Path, secret: bytes
) -> tuple[LabelledTable, tuple[str, ...] | None]:
    """The table without its patients, and these beside it.

    Read at once, the table would log and refuse patients by their names.

    Raises:
        UserError: what `read_labelled_table` refuses, without the name of a patient.
    """

    def part(**without: None) -> LabelledTable:
        columns = settings.columns.model_copy(update=without)
        changed = settings.model_copy(update={"columns": columns})
        return read_labelled_table(changed, root, lambda path: image_id(path, secret))

    table = part(patient=None)
    if settings.columns.patient is None:
        return table, None
    try:
        return table, part(site=None, split=None).patients
    except UserError:  # the table was sound without this column
        raise UserError(
            f"data.table={settings.table}: column {settings.columns.patient!r} is empty for an "
            "image, or names two patients for one"
        ) from None


def _match(
    settings: DataSettings,
    root: Path,
    files: Sequence[str],
    names: Sequence[str],
    needs_patients: bool,
    secret: bytes,
) -> tuple[tuple[str | None, ...], dict[str, _Header]]:
    """The file of each name, None where there is none, and the headers that had to be read."""
    known = _by_name(files)
    paths = [known.get(name) or known.get(same_name(name)) for name in names]
    headers: dict[str, _Header] = {}
    if None in paths:  # then names may be SOPInstanceUIDs, and any file may be meant
        headers = _read_headers(root, files)
        by_uid = _by_uid(settings, headers, set(names) - set(known))
        paths = [path or by_uid.get(name) for path, name in zip(paths, names, strict=True)]
    elif needs_patients:
        headers = _read_headers(root, [path for path in paths if path])
    counts = Counter(path for path in paths if path)
    if not counts:
        raise UserError(
            f"data.table={settings.table}: column {settings.columns.image!r} names no DICOM file "
            f"below data.root={root}, allowed are relative paths and SOPInstanceUIDs"
        )
    path, count = counts.most_common(1)[0]
    if count > 1:
        raise UserError(
            f"data.table={settings.table}: image {image_id(path, secret)} is listed {count} times, "
            "by different names"
        )
    return tuple(paths), headers


def _by_name(files: Iterable[str]) -> dict[str, str]:
    """File of each path, and of each path without an ending where that is of one file alone."""
    without: dict[str, list[str]] = {}
    for path in files:
        stem, ending = os.path.splitext(path)
        if ending[1:] and not ending[1:].isdigit():  # a UID's last part is no ending
            without.setdefault(stem, []).append(path)
    known = {stem: paths[0] for stem, paths in without.items() if len(paths) == 1}
    return {same_name(path): path for path in files} | known | {path: path for path in files}


def _read_headers(root: Path, paths: Iterable[str]) -> dict[str, _Header]:
    headers = {}
    with quiet_pydicom() as pydicom:
        for path in paths:
            try:
                keywords = ("SOPInstanceUID", "PatientID")
                header = read_elements(pydicom, root / path, keywords, pixels=False)
                uid, patient = header.get("SOPInstanceUID"), header.get("PatientID")
                headers[path] = _Header(str(uid or "").strip(), str(patient or "").strip())
            except Exception:  # Decoding meets the same error again and reports it.
                headers[path] = _Header("", "")
    return headers


def _by_uid(
    settings: DataSettings, headers: Mapping[str, _Header], names: Set[str]
) -> dict[str, str]:
    """File of each name that is a SOPInstanceUID."""
    found: dict[str, str] = {}
    for path, header in headers.items():
        if header.uid in names and found.setdefault(header.uid, path) != path:
            raise UserError(
                f"data.table={settings.table}: SOPInstanceUID {header.uid} is that of several files"
            )
    return found


def _without_patient(patients: Sequence[str]) -> list[CheckResult]:
    without = patients.count("")
    if not without:
        return []
    return [CheckResult("warning", f"{without} images have no PatientID, each counts as a patient")]


def _refuse_shared_groups(
    settings: DataSettings,
    what: str,
    ids: Sequence[str],
    groups: Sequence[str],
    given: Sequence[str] | None,
) -> None:
    if given is not None and (shared := first_shared(groups, given)):
        one, other = shared
        raise UserError(
            f"data.table={settings.table}: images {ids[one]} and {ids[other]} are of one patient "
            f"but in two {what}s, {given[one]} and {given[other]}"
        )

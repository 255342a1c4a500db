"""A folder of DICOM files with a table of labels; who the patients are never leaves this module.

Groups and image names are digests: a patient id, and paths that may contain one, stay in the files.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.dataset import Source, first_shared
from mediffusion_core.data.readers.dicom_pixels import (
    Window,
    decode_dicom,
    quiet_pydicom,
    read_header,
)
from mediffusion_core.data.readers.labelled_table import (
    LabelledTable,
    chosen_classes,
    read_labelled_table,
)
from mediffusion_core.data.readers.tables import data_root
from mediffusion_core.data.store.images import ImageError, confined
from mediffusion_core.settings import DataSettings

SUFFIX = ".dcm"
PREAMBLE, MAGIC = 128, b"DICM"
DIRECTORY = "DICOMDIR"
"""The index that stands beside the files of a disc; it is DICOM itself, and has no pixels."""

logger = logging.getLogger(__name__)


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


def read(settings: DataSettings, seed: int) -> Source:
    """DICOM images below `data.root`: files called `*.dcm`, and DICOM files without an ending.

    The images are those that `data.table` lists, by path relative to the root, with or without
    `.dcm`, or by SOPInstanceUID. Without a table, but with `data.classes`, they are all there are
    and no label is known. An image belongs to the patient of the table's column, else to that of
    its own PatientID; without either it is its own group.

    Raises:
        UserError: missing pydicom, folder, table or DICOM file; what `read_labelled_table`
            refuses; an image listed twice or by a SOPInstanceUID of several files; a patient in
            two splits or sites.
    """
    root = data_root(settings)
    files = find_files(root)
    if not files:
        raise UserError(f"data.root={root}: no folder with DICOM files (*{SUFFIX})")
    if settings.table is None:
        table, patients = _unlabelled(settings, tuple(files)), None
    else:
        table, patients = _labelled(settings, root)
    paths, headers = _match(settings, root, files, table.names, patients is None)
    ids = tuple(image_id(root, path or name) for path, name in zip(paths, table.names, strict=True))
    if patients is None:
        patients = tuple(headers[path].patient if path else "" for path in paths)
    groups = tuple(
        _digest(root, "patient", patient) if patient else own
        for patient, own in zip(patients, ids, strict=True)
    )
    _report(root, len(files), paths, patients)
    for what, given in (("split", table.splits), ("site", table.sites)):
        _refuse_shared_groups(settings, what, ids, groups, given)
    return Source(
        name="dicom",
        classes=table.classes,
        multi_label=table.multi_label,
        image_ids=ids,
        labels=table.labels,
        groups=groups,
        centres=table.sites,
        load=_Loader(root, paths, settings.window),
        fingerprint=fingerprint(
            reader="dicom",
            root=str(root),
            files=[(path, *files[path]) for path in paths if path],
            window=settings.window,
            table=table.digest,
            columns=settings.columns.model_dump(),
            classes=settings.classes,
            multi_label=settings.multi_label,
            separator=settings.separator,
            groups=groups,
        ),
        splits=table.splits,
        isolated=True,  # GDCM aborts on some broken lossless JPEGs
    )


def image_id(root: Path, relative: str) -> str:
    """The name of the image at a path relative to the resolved root, 16 hexadecimal digits."""
    return _digest(root, "image", relative)


def _digest(root: Path, what: str, text: str) -> str:
    # Salted, so that a patient id of one folder can't be looked up in a table made for another.
    salt = hashlib.sha256(str(root).encode("utf-8", "surrogateescape")).hexdigest()
    salted = f"{salt}|{what}|{text}".encode("utf-8", "surrogateescape")
    return hashlib.sha256(salted).hexdigest()[:16]


def find_files(root: Path) -> dict[str, tuple[int, int]]:
    """Relative path of each DICOM file below a resolved root to (bytes, modification time in ns).

    Links to folders are not followed, and links to files only where these lie below the root.
    """
    found = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if name == DIRECTORY or not _is_below(root, path) or not _is_dicom(path):
                continue
            status = path.stat()
            found[str(path.relative_to(root))] = (status.st_size, status.st_mtime_ns)
    return found


def _is_below(root: Path, path: Path) -> bool:
    # `realpath`, since `resolve` raises where links lead in a circle.
    return not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(root)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == SUFFIX:
        return path.is_file()
    if path.suffix or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC
    except OSError:
        return False


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


def _labelled(settings: DataSettings, root: Path) -> tuple[LabelledTable, tuple[str, ...] | None]:
    """The table without its patients, and these beside it.

    Read at once, the table would log and refuse patients by their names.

    Raises:
        UserError: what `read_labelled_table` refuses, without the name of a patient.
    """

    def part(**without: None) -> LabelledTable:
        columns = settings.columns.model_copy(update=without)
        return read_labelled_table(settings.model_copy(update={"columns": columns}), root)

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
    files: Iterable[str],
    names: Sequence[str],
    needs_patients: bool,
) -> tuple[tuple[str | None, ...], dict[str, _Header]]:
    """The file of each name, None where there is none, and the headers that had to be read."""
    known = {path[: -len(SUFFIX)]: path for path in files if path.lower().endswith(SUFFIX)}
    known |= {path: path for path in files}
    paths = [known.get(name) for name in names]
    headers: dict[str, _Header] = {}
    if None in paths:  # then names may be SOPInstanceUIDs, and any file may be meant
        headers = _read_headers(root, files)
        by_uid = _by_uid(settings, headers, set(names) - set(known))
        paths = [known.get(name) or by_uid.get(name) for name in names]
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
            f"data.table={settings.table}: image {image_id(root, path)} is listed {count} times, "
            "by different names"
        )
    return tuple(paths), headers


def _read_headers(root: Path, paths: Iterable[str]) -> dict[str, _Header]:
    headers = {}
    with quiet_pydicom() as pydicom:
        for path in paths:
            try:
                header = read_header(pydicom, root / path, ("SOPInstanceUID", "PatientID"))
                uid, patient = header.get("SOPInstanceUID"), header.get("PatientID")
                headers[path] = _Header(str(uid or "").strip(), str(patient or "").strip())
            except Exception:  # Whatever it is, decoding meets it again and says what it is.
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


def _report(root: Path, count: int, paths: Sequence[str | None], patients: Sequence[str]) -> None:
    listed = sum(path is not None for path in paths)
    if listed < count:
        logger.warning("%s: %d of %d DICOM files are not in the table and left out",
                       root, count - listed, count)  # fmt: skip
    if without := patients.count(""):
        logger.warning("%s: %d images have no PatientID, each counts as a patient", root, without)


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

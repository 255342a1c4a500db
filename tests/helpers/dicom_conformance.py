"""Compares our pixels of pydicom's published test files with those of pydicom and DCMTK.

`python tests/helpers/dicom_conformance.py` prints the table of the documentation.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mediffusion_core.data.readers.dicom_pixels import decode_dicom
from mediffusion_core.data.store.images import ImageError

DCMTK = all(shutil.which(tool) for tool in ("dcmj2pnm", "dcml2pnm", "dcmcjpeg"))
NO_DCMTK = "needs DCMTK (apt-get install dcmtk)"

REFUSED = {
    r"no pixel data": "reports, structures, plans, directories, signals; cut before the pixels",
    r"\d+ frames, allowed is 1": "a volume or a film: which frame would the label be of?",
    r"values of 32 of 32 bits": "32-bit values, such as radiotherapy doses",
    r"an enhanced image": "segmentations and enhanced images, whose rescale stands by frame",
    r"truncated, ": "cut within the pixels",
    r"the whole file is deflated": "a deflated file, which may unfold to any size",
    r"compressed are .* the header says": "its codestream claims 3.7 thousand million columns",
    r"not a DICOM file": "text, or a data set that starts at its second byte",
    r"damaged or unusual DICOM file \(ValueError\)": "a header whose number is no number",
}
"""Reasons for which a file is not shown, and why they are true."""

PYDICOM_DIFFERS = {
    "OBXXXX1A_expb.dcm": "pydicom reads the 16-bit palette of a big-endian file in the wrong order",
    "JPEG-lossy.dcm": "its scan says that it holds no coefficients; pydicom's decoders refuse it",
    "OT-PAL-8-face.dcm": "its palette is that of ACR-NEMA, which pydicom does not know",
}
DCMTK_DIFFERS = {
    "JPGExtended.dcm": "lossy JPEG: decoders round the cosine transform differently",
    "JPEG-lossy.dcm": "lossy JPEG: decoders round the cosine transform differently",
    "SC_ybr_full_uncompressed.dcm": "DCMTK is 1.8 levels from the exact colour, this reader 0.5",
}
DCMTK_CANNOT = "DCMTK has no decoder for it, or calls it invalid"


@dataclass(frozen=True)
class Row:
    """One file: its reason where it is refused, else the largest difference in grey levels."""

    name: str
    refused: str | None = None
    from_pydicom: float | None = None
    from_dcmtk: float | None = None


def published_files() -> list[Path]:
    """The test files that come with pydicom and with the package pydicom-data."""
    import pydicom

    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    more = importlib.util.find_spec("data_store")
    folders += [Path(place) / "data" for place in (more and more.submodule_search_locations) or ()]
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".dcm", "") and path.name != "README"
    )


def compare(path: Path) -> Row:
    """A file as this reader, pydicom and DCMTK show it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ours = decode_dicom(path, None)
        except ImageError as error:
            return Row(path.name, refused=str(error))
        try:
            pydicom_shows = by_pydicom(path)
        except (AttributeError, ValueError, RuntimeError, NotImplementedError):
            pydicom_shows = None
        dcmtk_shows = by_dcmtk(path) if DCMTK else None
    return Row(path.name, None, _difference(ours, pydicom_shows), _difference(ours, dcmtk_shows))


def _difference(ours: np.ndarray, theirs: np.ndarray | None) -> float | None:
    if theirs is None:
        return None
    return float(np.abs(ours.astype(float) - theirs).max()) if ours.shape == theirs.shape else 255.0


def by_pydicom(path: Path) -> np.ndarray:
    """Grey levels of a file from pydicom's own functions."""
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    dataset = pydicom.dcmread(path, force=True)
    stored = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)[..., :3]
        is_narrow = (
            int(dataset.RedPaletteColorLookupTableDescriptor[2]) == 8 and colours.max() < 256
        )
        return np.rint(colours / (255 if is_narrow else 65535) * 255)
    if dataset.SamplesPerPixel == 3:
        return np.rint(stored / (2**dataset.BitsStored - 1) * 255)
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        shown = apply_voi_lut(values, dataset) / (2**bits - 1)
    elif dataset.get("WindowWidth"):
        low, high = _rescaled_range(dataset)
        shown = (apply_voi_lut(values, dataset) - low) / (high - low)
    else:
        wide = values.astype(float)
        shown = (wide - wide.min()) / max(wide.max() - wide.min(), 1e-6)
    grey = np.rint(np.clip(shown, 0, 1) * 255)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _rescaled_range(dataset: Any) -> tuple[float, float]:
    """The range that pydicom scales a windowed image to: that of the bits, rescaled."""
    if dataset.get("ModalityLUTSequence"):
        return 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = int(dataset.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (
        0, 2**bits - 1)  # fmt: skip
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    return low * slope + intercept, high * slope + intercept


def by_dcmtk(path: Path) -> np.ndarray | None:
    """The output of DCMTK's command with the same lookup table, window or range; None if it fails.

    Overlays are no part of the image.
    """
    import pydicom

    header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    options = ["-O", "+Ma"]
    if header.get("PhotometricInterpretation", "").startswith("MONOCHROME"):
        if header.get("VOILUTSequence"):
            options += ["+Wl", "1"]
        else:
            options += ["+Wi", "1"] if header.get("WindowWidth") else ["+Wm"]
    with tempfile.TemporaryDirectory() as work:
        output = Path(work, "shown.pnm")
        for tool in ("dcmj2pnm", "dcml2pnm"):
            subprocess.run([tool, *options, str(path), str(output)], capture_output=True)
            if output.is_file() and output.stat().st_size:
                with Image.open(output) as image:
                    return np.asarray(image).astype(float)
    return None


def true_reason(refused: str) -> str | None:
    """Why a refusal is right; None where nothing says so."""
    return next((why for said, why in REFUSED.items() if re.match(said, refused)), None)


def table(rows: list[Row]) -> str:
    """The table of the documentation: files by outcome, and each that differs with its reason."""
    shown = [row for row in rows if row.refused is None]
    equal = [row for row in shown if row.from_pydicom == 0]
    compared = [row for row in shown if row.from_dcmtk is not None]
    near = [row for row in compared if (row.from_dcmtk or 0) <= 1]
    lines = [
        "| files | how many |",
        "| --- | --- |",
        f"| of pydicom and pydicom-data | {len(rows)} |",
        f"| shown | {len(shown)} |",
        f"| of these equal to pydicom, value by value | {len(equal)} |",
        f"| of these that DCMTK can show | {len(compared)} |",
        f"| of those within one grey level of DCMTK | {len(near)} |",
        f"| refused, with the reasons below | {len(rows) - len(shown)} |",
        "",
        "| file | difference | reason |",
        "| --- | --- | --- |",
    ]
    for row in shown:
        if row.from_pydicom != 0:
            said = "none" if row.from_pydicom is None else f"{row.from_pydicom:g}"
            lines.append(
                f"| `{row.name}` | from pydicom {said} | {PYDICOM_DIFFERS.get(row.name, '?')} |"
            )
        if (row.from_dcmtk or 0) > 1:
            reason = DCMTK_DIFFERS.get(row.name, "?")
            lines.append(f"| `{row.name}` | from DCMTK {row.from_dcmtk:g} | {reason} |")
    lines += ["", "| refused | files | why |", "| --- | --- | --- |"]
    for said, why in REFUSED.items():
        count = sum(row.refused is not None and bool(re.match(said, row.refused)) for row in rows)
        plain = said.replace(r"\d+", "several").replace("\\", "")
        lines.append(f"| {plain} | {count} | {why} |")
    without = ", ".join(f"`{row.name}`" for row in shown if row.from_dcmtk is None)
    return "\n".join([*lines, "", f"{DCMTK_CANNOT}: {without}.", ""])


if __name__ == "__main__":
    print(table([compare(path) for path in published_files()]))

"""Phantom radiographs as a data set: nothing on disk, everything from the run's seed."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.hashing import derive_seed, fingerprint
from mediffusion_core.data import phantom
from mediffusion_core.data.attributes import AGE, ATTRIBUTES, SEX, Attributes, age_band_of
from mediffusion_core.data.dataset import Source, UnitNames
from mediffusion_core.data.store.images import fit
from mediffusion_core.settings import DataSettings


def read(settings: DataSettings, seed: int) -> Source:
    """`data.phantom.patients_per_site` phantom patients, one image each; sites "site-0", ..."""
    counts = settings.phantom.patients_per_site
    patients = tuple(
        (site, patient) for site, count in enumerate(counts) for patient in range(count)
    )
    names = tuple(f"site-{site}/patient-{patient}" for site, patient in patients)
    present = [phantom.findings_of(seed, site, patient) for site, patient in patients]
    labels = np.array([[name in found for name in phantom.FINDINGS] for found in present])
    # The drawing itself is the data: where its code changes, prepared images are stale.
    drawing = b"".join(
        path.read_bytes() for path in sorted(Path(phantom.__file__).parent.glob("*.py"))
    )
    return Source(
        name="phantom",
        classes=phantom.FINDINGS,
        multi_label=True,
        image_ids=names,
        labels=labels.astype(np.float32),
        groups=names,
        names=UnitNames("patient"),
        centres=tuple(f"site-{site}" for site, _ in patients),
        load=partial(draw, seed, patients, settings.image_size),
        fingerprint=fingerprint(reader="phantom", seed=seed, counts=counts, drawing=drawing),
        attributes=_attributes(seed, names),
    )


def _attributes(seed: int, names: tuple[str, ...]) -> Attributes:
    """A sex and an age from 18 to 89 of each patient, which the image does not show."""
    sexes = ATTRIBUTES[SEX]
    return {
        SEX: tuple(sexes[derive_seed(seed, SEX, name) % len(sexes)] for name in names),
        AGE: tuple(age_band_of(str(18 + derive_seed(seed, AGE, name) % 72)) for name in names),
    }


def draw(
    seed: int, patients: tuple[tuple[int, int], ...], size: int, index: int
) -> NDArray[np.uint8]:
    """The phantom of `patients[index]`, (site, patient), uint8 (size, size) or finer."""
    site, patient = patients[index]
    findings = phantom.findings_of(seed, site, patient)
    return phantom.render(seed, site, patient, findings, max(size, phantom.SMALLEST_SIZE))


def without_finding(seed: int, image_id: str, finding: str, size: int) -> NDArray[np.uint8]:
    """The same phantom patient without one finding, uint8 (size, size), noise included.

    Args:
        seed: The run's seed.
        image_id: As in `Source.image_ids`.
        finding: What to leave out.
        size: Pixels a side.
    """
    found = phantom.findings_of(seed, *_numbers(image_id))
    return _with_findings(seed, image_id, found - {finding}, size)


def with_finding(seed: int, image_id: str, finding: str, size: int) -> NDArray[np.uint8]:
    """The same phantom patient with one finding more, where it would be; else `without_finding`."""
    found = phantom.findings_of(seed, *_numbers(image_id))
    return _with_findings(seed, image_id, found | {finding}, size)


def _with_findings(
    seed: int, image_id: str, findings: frozenset[str], size: int
) -> NDArray[np.uint8]:
    site, patient = _numbers(image_id)
    drawn = phantom.render(seed, site, patient, findings, max(size, phantom.SMALLEST_SIZE))
    return fit(drawn, size, 1)[..., 0]


def finding_mask(seed: int, image_id: str, finding: str, size: int) -> NDArray[np.bool_]:
    """Pixels that one finding changes in a phantom patient, bool (size, size).

    Args as `without_finding`.
    """
    site, patient = _numbers(image_id)
    findings = phantom.findings_of(seed, site, patient)
    drawn = phantom.change_mask(
        seed, site, patient, findings, finding, max(size, phantom.SMALLEST_SIZE)
    )
    return fit(drawn.astype(np.uint8) * 255, size, 1)[..., 0] > 127


def _numbers(image_id: str) -> tuple[int, int]:
    site, patient = (int(part.rpartition("-")[2]) for part in image_id.split("/"))
    return site, patient

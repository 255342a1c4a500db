"""Phantom radiographs as a data set: nothing on disk, everything from the run's seed."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed, fingerprint
from mediffusion_core.data import marks, phantom
from mediffusion_core.data.attributes import AGE, ATTRIBUTES, SEX, Attributes, age_band_of
from mediffusion_core.data.dataset import Source, UnitNames
from mediffusion_core.data.store.images import fit
from mediffusion_core.settings import DataSettings, MarkSettings


def read(settings: DataSettings, seed: int) -> Source:
    """`data.phantom.patients_per_site` phantom patients, one image each; sites "site-0", ...

    Raises:
        UserError: if the planted mark goes with an unknown finding.
    """
    mark = settings.phantom.mark
    if mark.finding not in phantom.FINDINGS:
        raise UserError(
            f"data.phantom.mark.finding={mark.finding}: allowed are {', '.join(phantom.FINDINGS)}"
        )
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
        load=partial(draw, settings, seed, patients),
        fingerprint=fingerprint(
            reader="phantom", seed=seed, counts=counts, drawing=drawing, **_planting(mark)
        ),
        attributes=_attributes(seed, names),
    )


def _attributes(seed: int, names: tuple[str, ...]) -> Attributes:
    """A sex and an age from 18 to 89 of each patient, which the image does not show."""
    sexes = ATTRIBUTES[SEX]
    return {
        SEX: tuple(sexes[derive_seed(seed, SEX, name) % len(sexes)] for name in names),
        AGE: tuple(age_band_of(str(18 + derive_seed(seed, AGE, name) % 72)) for name in names),
    }


def _planting(mark: MarkSettings) -> dict[str, object]:
    """Parts of the fingerprint of images with a planted mark; none without one."""
    if mark.site is None:
        return {}
    return {"mark": mark.model_dump(mode="json"), "marks": Path(marks.__file__).read_bytes()}


def draw(
    settings: DataSettings, seed: int, patients: tuple[tuple[int, int], ...], index: int
) -> NDArray[np.uint8]:
    """The phantom of `patients[index]`, (site, patient), uint8 (S, S) with S the image's size.

    A size below the smallest of phantoms becomes that size.
    """
    site, patient = patients[index]
    return _drawn(settings, seed, site, patient, phantom.findings_of(seed, site, patient))


def _drawn(
    settings: DataSettings, seed: int, site: int, patient: int, findings: frozenset[str]
) -> NDArray[np.uint8]:
    """A phantom with some findings, and with the planted mark if its image has that."""
    size = max(settings.image_size, phantom.SMALLEST_SIZE)
    image = phantom.render(seed, site, patient, findings, size)
    if _has_mark(settings.phantom.mark, seed, site, patient):
        return marks.planted(image, settings.phantom.mark.kind)
    return image


def _has_mark(mark: MarkSettings, seed: int, site: int, patient: int) -> bool:
    """Whether the patient's image has the planted mark: drawn by patient, at one site alone."""
    if site != mark.site:
        return False
    found = mark.finding in phantom.findings_of(seed, site, patient)
    draw = np.random.default_rng(derive_seed(seed, "mark", site, patient)).random()
    return bool(draw < (mark.rate if found else mark.other_rate))


def without_finding(
    settings: DataSettings, seed: int, image_id: str, finding: str
) -> NDArray[np.uint8]:
    """The same phantom patient without one finding, uint8 (S, S), with the same noise and mark.

    Args:
        settings: Of the images.
        seed: The run's seed.
        image_id: As in `Source.image_ids`.
        finding: The finding to leave out.
    """
    found = phantom.findings_of(seed, *_numbers(image_id))
    return _with_findings(settings, seed, image_id, found - {finding})


def with_finding(
    settings: DataSettings, seed: int, image_id: str, finding: str
) -> NDArray[np.uint8]:
    """The same phantom patient with one finding more, where it would be; else `without_finding`."""
    found = phantom.findings_of(seed, *_numbers(image_id))
    return _with_findings(settings, seed, image_id, found | {finding})


def _with_findings(
    settings: DataSettings, seed: int, image_id: str, findings: frozenset[str]
) -> NDArray[np.uint8]:
    drawn = _drawn(settings, seed, *_numbers(image_id), findings)
    return fit(drawn, settings.image_size, 1)[..., 0]


def finding_mask(
    settings: DataSettings, seed: int, image_id: str, finding: str
) -> NDArray[np.bool_]:
    """Pixels that one finding changes in a phantom patient, bool (S, S).

    Args as `without_finding`.
    """
    site, patient = _numbers(image_id)
    findings = phantom.findings_of(seed, site, patient)
    size = max(settings.image_size, phantom.SMALLEST_SIZE)
    drawn = phantom.change_mask(seed, site, patient, findings, finding, size)
    return fit(drawn.astype(np.uint8) * 255, settings.image_size, 1)[..., 0] > 127


def mark_mask(settings: DataSettings, seed: int, image_id: str) -> NDArray[np.bool_]:
    """Pixels of the planted mark in a phantom's image, bool (S, S); none where it has none."""
    size = settings.image_size
    if not _has_mark(settings.phantom.mark, seed, *_numbers(image_id)):
        return np.zeros((size, size), dtype=np.bool_)
    return marks.mask(settings.phantom.mark.kind, size)


def _numbers(image_id: str) -> tuple[int, int]:
    site, patient = (int(part.rpartition("-")[2]) for part in image_id.split("/"))
    return site, patient

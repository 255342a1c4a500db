"""Draws phantom radiographs: a patient's findings, the film, and what each finding changes."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.phantom.anatomy import Anatomy, Map, Patient, draw_patient, step
from mediffusion_core.data.phantom.findings import attenuation

FINDINGS: tuple[str, ...] = (
    "Effusion",
    "Cardiomegaly",
    "Nodule",
    "Pneumothorax",
    "Consolidation",
)

SUPERSAMPLING = 2
SMALLEST_SIZE = 32
BEAM_HARDNESS = 2.2
EFFUSION_GIVEN_CARDIOMEGALY = 1.5
MASK_SHARE_OF_PEAK = 0.12


class _Stream(IntEnum):
    FINDINGS = 0
    ANATOMY = 1
    TEXTURE = 2
    FILM = 3
    NOISE = 4
    GEOMETRY = 16


@dataclass(frozen=True)
class Scanner:
    """How one site's machine turns attenuation into grey values.

    Attributes:
        window: attenuations shown as black and as white for an average patient.
        gamma: exponent of the film curve; below 1 the lungs are brighter.
        shoulder: steepness of the film curve's ends (0: straight).
        blur: sigma of focal spot and detector, in pixels of a 64 px image.
        edge: gain of the machine's edge enhancement.
        noise: standard deviation of the detector's noise, in attenuation, at the densest part.
        grain: standard deviation of the noise everywhere, in grey values of 0 to 1.
        scatter: share of scattered radiation.
        border: widest collimation border, as a share of the image's side.
        border_grey: grey value of that border.
        marker: corner of the burnt-in side marker, as (row, column) shares; None without one.
    """

    window: tuple[float, float]
    gamma: float
    shoulder: float
    blur: float
    edge: float
    noise: float
    grain: float
    scatter: float
    border: float
    border_grey: float
    marker: tuple[float, float] | None


SCANNERS: tuple[Scanner, ...] = (
    Scanner((0.02, 1.25), 1.0, 1.2, 0.35, 0.5, 0.014, 0.004, 0.05, 0.02, 0.0, (0.05, 0.90)),
    Scanner((-0.20, 1.20), 0.85, 0.8, 0.55, 0.0, 0.020, 0.006, 0.25, 0.00, 0.0, None),
    Scanner((0.05, 1.15), 1.1, 1.5, 0.30, 0.8, 0.018, 0.005, 0.02, 0.06, 0.02, (0.14, 0.92)),
    Scanner((-0.08, 1.22), 1.0, 1.0, 0.60, 0.2, 0.010, 0.008, 0.12, 0.04, 0.9, (0.07, 0.84)),
    Scanner((-0.08, 1.20), 0.75, 1.0, 0.45, 0.3, 0.026, 0.003, 0.18, 0.03, 0.0, (0.90, 0.90)),
)


def _rng(seed: int, site: int, patient: int, stream: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, site, patient, stream]))
    )


def _checked(
    seed: int, site: int, patient: int, findings: Collection[str], size: int
) -> frozenset[str]:
    for name, value in (("seed", seed), ("site", site), ("patient", patient)):
        if value < 0:
            raise UserError(f"phantom {name} is {value}; it must be 0 or more")
    if size < SMALLEST_SIZE:
        raise UserError(f"phantom size is {size} px; it must be {SMALLEST_SIZE} or more")
    given = (findings,) if isinstance(findings, str) else findings
    for finding in given:
        if finding not in FINDINGS:
            raise UserError(f"unknown finding {finding!r}; allowed are {', '.join(FINDINGS)}")
    return frozenset(given)


def prevalence(site: int) -> dict[str, float]:
    """Share of a site's patients with each finding, 0.15 to 0.40, from the site's number alone."""
    rng = np.random.default_rng([site, len(FINDINGS)])
    return dict(zip(FINDINGS, rng.uniform(0.15, 0.40, len(FINDINGS)).tolist(), strict=True))


def findings_of(seed: int, site: int, patient: int) -> frozenset[str]:
    """The findings of a patient.

    Findings are independent but for effusions, which are commoner beside an enlarged heart; the
    site's prevalences hold all the same.

    Args:
        seed: seed of the data set, 0 or more.
        site: number of the site, 0 or more.
        patient: number of the patient at the site, 0 or more.

    Raises:
        UserError: a number is negative.
    """
    _checked(seed, site, patient, (), SMALLEST_SIZE)
    share = prevalence(site)
    draws = dict(zip(FINDINGS, _rng(seed, site, patient, _Stream.FINDINGS).random(5), strict=True))
    present = {name for name in FINDINGS if draws[name] < share[name]}
    heart = share["Cardiomegaly"]
    raised = share["Effusion"] * EFFUSION_GIVEN_CARDIOMEGALY
    lowered = (share["Effusion"] - heart * raised) / (1 - heart)
    present.discard("Effusion")
    if draws["Effusion"] < (raised if "Cardiomegaly" in present else lowered):
        present.add("Effusion")
    return frozenset(present)


def render(
    seed: int, site: int, patient: int, findings: Collection[str], size: int = 64
) -> NDArray[np.uint8]:
    """Radiograph of a patient with the given findings.

    Anatomy, pose, exposure and noise depend on the numbers alone, so two renderings that differ
    in their findings show the same patient.

    Args:
        seed: seed of the data set, 0 or more.
        site: number of the site, 0 or more; picks the scanner.
        patient: number of the patient at the site, 0 or more.
        findings: names from `FINDINGS`, those of `findings_of` or any others.
        size: side of the image in pixels.

    Returns:
        Grey values, shape (size, size): dense parts bright, air dark.

    Raises:
        UserError: an unknown finding, a negative number or a size that is too small.
    """
    chosen = _checked(seed, site, patient, findings, size)
    anatomy = _anatomy(seed, site, patient, size)
    healthy = _attenuation(anatomy, seed, site, patient, frozenset())
    shown = _attenuation(anatomy, seed, site, patient, chosen) if chosen else healthy
    film = _rng(seed, site, patient, _Stream.FILM)
    noise = _rng(seed, site, patient, _Stream.NOISE)
    return _expose(SCANNERS[site % len(SCANNERS)], anatomy, healthy, shown, film, noise)


def change_mask(
    seed: int,
    site: int,
    patient: int,
    findings: Collection[str],
    finding: str,
    size: int = 64,
) -> NDArray[np.bool_]:
    """Pixels that one finding changes in a patient, whether or not it is among `findings`.

    Args:
        seed: seed of the data set, 0 or more.
        site: number of the site, 0 or more.
        patient: number of the patient at the site, 0 or more.
        findings: what else the patient has; `finding` itself may be among them.
        finding: the finding whose pixels are wanted.
        size: side of the image in pixels.

    Returns:
        Shape (size, size): true where the noise-free attenuation, before any scanner, changes by
        more than a share (`MASK_SHARE_OF_PEAK`) of its largest change.

    Raises:
        UserError: an unknown finding, a negative number or a size that is too small.
    """
    others = _checked(seed, site, patient, findings, size)
    wanted = _checked(seed, site, patient, (finding,), size)
    anatomy = _anatomy(seed, site, patient, size)
    with_it = _attenuation(anatomy, seed, site, patient, others | wanted)
    without = _attenuation(anatomy, seed, site, patient, others - wanted)
    change = _shrink(np.abs(with_it - without))
    mask: NDArray[np.bool_] = change > MASK_SHARE_OF_PEAK * change.max()
    return mask


def _anatomy(seed: int, site: int, patient: int, size: int) -> Anatomy:
    drawn = draw_patient(_rng(seed, site, patient, _Stream.ANATOMY))
    return Anatomy(drawn, _rng(seed, site, patient, _Stream.TEXTURE), size * SUPERSAMPLING)


def _attenuation(
    anatomy: Anatomy, seed: int, site: int, patient: int, findings: frozenset[str]
) -> Map:
    def geometry(finding: str) -> np.random.Generator:
        return _rng(seed, site, patient, _Stream.GEOMETRY + FINDINGS.index(finding))

    return attenuation(anatomy, findings, geometry)


def _shrink(image: Map) -> Map:
    side = image.shape[0] // SUPERSAMPLING
    blocks = image.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING)
    shrunk: Map = blocks.mean(axis=(1, 3))
    return shrunk


def _expose(
    scanner: Scanner,
    anatomy: Anatomy,
    healthy: Map,
    shown: Map,
    film: np.random.Generator,
    noise: np.random.Generator,
) -> NDArray[np.uint8]:
    size = shown.shape[0] // SUPERSAMPLING
    # Scatter, exposure and noise come from the healthy patient: a finding changes its own place
    # and nothing far from it.
    reference = _shrink(healthy)
    beam = np.exp(np.float32(-BEAM_HARDNESS) * shown)
    haze = gaussian_filter(np.exp(np.float32(-BEAM_HARDNESS) * reference), size / 8, truncate=2.0)
    haze = np.repeat(np.repeat(haze, SUPERSAMPLING, 0), SUPERSAMPLING, 1)
    received = gaussian_filter(
        beam + np.float32(scanner.scatter) * haze, scanner.blur * size / 32, truncate=3.0
    )
    seen = np.log(_shrink(received)) * np.float32(-1 / BEAM_HARDNESS)
    if scanner.edge:
        seen = seen + np.float32(scanner.edge) * (seen - gaussian_filter(seen, size / 40))
    quanta = np.exp(np.float32(BEAM_HARDNESS / 2) * (np.clip(reference, 0, 1.3) - 1.3))
    grains = noise.standard_normal((2, size, size), dtype=np.float32)
    seen = seen + np.float32(scanner.noise) * quanta * grains[0]
    level = _develop(scanner, anatomy.patient, seen, reference)
    level = level + np.float32(scanner.grain) * grains[1]
    level = _frame(scanner, level, film)
    grey: NDArray[np.uint8] = np.clip(level * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    return grey


def _develop(scanner: Scanner, patient: Patient, seen: Map, reference: Map) -> Map:
    size = seen.shape[0]
    middle = float(reference[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4].mean())
    low, high = scanner.window
    # Automatic exposure evens out most of the difference between thin and stout patients.
    shift = 0.6 * (middle - 0.72) + patient.exposure
    level = (seen - np.float32(low + shift)) * np.float32(patient.contrast / (high - low))
    level = np.clip(level, 0, 1) ** np.float32(scanner.gamma)
    bend = scanner.shoulder
    curve: Map = np.tanh(np.float32(bend) * (level - np.float32(0.5)))
    return curve * np.float32(0.5 / np.tanh(bend / 2)) + np.float32(0.5)


def _frame(scanner: Scanner, level: Map, film: np.random.Generator) -> Map:
    size = level.shape[0]
    spots = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    margin = film.uniform(-0.5, 1.0, 4) * scanner.border
    jitter = film.normal(0, 0.02, 2)
    lit = film.random() < 0.8
    across = np.minimum(spots - np.float32(margin[0]), 1 - np.float32(margin[1]) - spots)
    down = np.minimum(spots - np.float32(margin[2]), 1 - np.float32(margin[3]) - spots)
    opening = step(np.minimum(across[None, :], down[:, None]), 0.4 / size)
    if scanner.marker is not None and lit:
        row, column = scanner.marker[0] + jitter[0], scanner.marker[1] + jitter[1]
        right, below = spots - np.float32(column), spots - np.float32(row)
        stem = (
            step(0.013 - np.abs(right), 0.006)[None, :] * step(0.04 - np.abs(below), 0.006)[:, None]
        )
        foot = step(0.03 - np.abs(right - np.float32(0.02)), 0.006)[None, :]
        foot = foot * step(0.011 - np.abs(below - np.float32(0.032)), 0.006)[:, None]
        letter = np.maximum(stem, foot)
        level = level + np.float32(0.85) * letter * (1 - level)
    return level * opening + np.float32(scanner.border_grey) * (1 - opening)

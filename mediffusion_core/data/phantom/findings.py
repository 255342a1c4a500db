"""Findings of a phantom patient as attenuations: fluid, air, masses and a wide heart."""

from collections.abc import Callable

import numpy as np

from mediffusion_core.data.phantom.anatomy import Anatomy, Map, smooth_noise, step

Geometry = Callable[[str], np.random.Generator]

LUNG_AIR = 0.66


def attenuation(anatomy: Anatomy, findings: frozenset[str], geometry: Geometry) -> Map:
    """Attenuation along each ray, before any scanner; shape (P, P).

    Args:
        anatomy: the patient's maps.
        findings: what the patient has.
        geometry: gives the random stream that places one finding in this patient.
    """
    heart, air, vessels = anatomy.heart, anatomy.air, anatomy.vessels
    added: Map = np.zeros_like(air)
    if "Cardiomegaly" in findings:
        heart = anatomy.heart_map(geometry("Cardiomegaly").uniform(0.51, 0.61))
    if "Pneumothorax" in findings:
        gap, line = _pneumothorax(anatomy, geometry("Pneumothorax"))
        empty = anatomy.lung * np.maximum(anatomy.depth * np.float32(1.12), np.float32(0.98))
        air = air + gap * (empty - air)
        vessels = vessels * (1 - gap)
        added += line
    if "Consolidation" in findings:
        filled = _consolidation(anatomy, geometry("Consolidation"))
        air, vessels = air * (1 - np.float32(0.8) * filled), vessels * (1 - filled)
    if "Effusion" in findings:
        fluid = _effusion(anatomy, geometry("Effusion"))
        air, vessels = air * (1 - np.float32(0.95) * fluid), vessels * (1 - fluid)
    if "Nodule" in findings:
        added += _nodule(anatomy, geometry("Nodule"))
    aerated = air * (1 - np.float32(0.88) * heart)
    shown = vessels * anatomy.lung * (1 - np.float32(0.6) * heart)
    return anatomy.tissue - np.float32(LUNG_AIR) * aerated + shown + np.float32(0.1) * heart + added


def _sides(rng: np.random.Generator, both: float) -> tuple[bool, bool]:
    draw = rng.random()
    return (draw < both or draw < (1 + both) / 2, draw < both or draw >= (1 + both) / 2)


def _effusion(anatomy: Anatomy, rng: np.random.Generator) -> Map:
    right, left = _sides(rng, both=0.2)
    height = (rng.uniform(0.23, 0.54) * right, rng.uniform(0.23, 0.54) * left)
    patient = anatomy.patient
    floor = (patient.dome[0] + patient.angle_depth, patient.dome[1] + patient.angle_depth)
    outward = np.clip((anatomy.a - np.float32(0.15)) / np.float32(0.83), 0, 1.1)
    meniscus = np.float32(0.5) + np.float32(0.6) * outward**3
    surface = anatomy.per_side(floor) - anatomy.per_side(height) * meniscus
    there = anatomy.per_side((float(right), float(left)))
    return step(anatomy.v - surface, 0.035) * there


def _pneumothorax(anatomy: Anatomy, rng: np.random.Generator) -> tuple[Map, Map]:
    there = anatomy.left if rng.random() < 0.5 else ~anatomy.left
    width, reach = rng.uniform(0.28, 0.5), rng.uniform(0.75, 1.2)
    fade = np.clip(1 - anatomy.v / np.float32(reach * 1.1), 0, 1)
    shrink = np.float32(width) * np.sqrt(fade)
    inward = np.minimum(
        anatomy.lateral - shrink - anatomy.a,
        np.float32(0.9) * (anatomy.v - anatomy.apex - np.float32(0.55) * shrink),
    )
    lung = anatomy.lung * there
    gap = step(-inward, 0.02) * lung * np.minimum(shrink * 25, 1)
    edge = inward / np.float32(0.02)
    line = np.float32(0.22) * np.exp(-edge * edge) * lung * np.minimum(shrink * 15, 1)
    return gap, line


def _consolidation(anatomy: Anatomy, rng: np.random.Generator) -> Map:
    side = 1 if rng.random() < 0.5 else -1
    middle_u, middle_v = rng.uniform(0.36, 0.72), rng.uniform(0.2, 0.85)
    patch: Map = np.zeros_like(anatomy.air)
    for _ in range(4):
        u = side * (middle_u + rng.normal(0, 0.09))
        patch += anatomy.spot(u, middle_v + rng.normal(0, 0.07), rng.uniform(0.15, 0.25), 0.75)
    patch *= 1 + np.float32(0.35) * smooth_noise(rng, anatomy.pixels, 20)
    fissure = step((anatomy.v - np.float32(middle_v)) * int(rng.choice((-1, 1))) + 0.1, 0.03)
    return np.clip(patch * fissure, 0, np.float32(rng.uniform(0.75, 1.0)))


def _nodule(anatomy: Anatomy, rng: np.random.Generator) -> Map:
    width = anatomy.patient.lung_width
    balls: Map = np.zeros_like(anatomy.air)
    for _ in range(rng.integers(1, 4)):
        side = int(rng.choice((-1, 1)))
        v = rng.uniform(0.1, 0.88)
        inner = 0.3 if side < 0 or v < 0.5 else 0.52
        rise = np.clip((0.9 - v) / 0.92, 0, 1) ** 1.8
        outer = 0.27 + (width[int(side > 0)] - 0.36) * float(np.sqrt(1 - rise))
        u = side * rng.uniform(min(inner, outer), outer)
        balls += anatomy.spot(u, v, rng.uniform(0.105, 0.145), rng.uniform(0.45, 0.66))
    return balls

"""Draws one phantom patient: maps of attenuation in the patient's own frame, and what findings do.

The frame is `u` across (0 at the midline, negative on the patient's right, which stands at the
image's left, about ±1 at the lungs' outer edge) and `v` down (0 at the apices, 1 at the domes of
the diaphragm); `a` is |u|. Attenuations add up, as logarithms of a beam's intensity do.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Map = NDArray[np.floating[Any]]

VESSEL_SIGMA = 0.85


@dataclass(frozen=True)
class Patient:
    """Anatomy of a patient without findings; lengths in units of the patient's frame."""

    centre: tuple[float, float]
    scale: tuple[float, float]
    tilt: float
    lung_width: tuple[float, float]
    dome: tuple[float, float]
    angle_depth: float
    habitus: float
    axilla: float
    shoulder: float
    midline: float
    heart_ratio: float
    heart_shift: float
    heart_lean: float
    rib_spacing: float
    rib_drop: float
    rib_phase: tuple[float, float]
    rib_strength: float
    breast: float
    breast_level: float
    gas: float
    vascularity: float
    exposure: float
    contrast: float


def draw_patient(rng: np.random.Generator) -> Patient:
    """Anatomy, pose and exposure of one patient.

    Args:
        rng: the patient's anatomy stream.
    """
    uniform, normal = rng.uniform, rng.normal
    size = uniform(0.84, 1.12)
    inspiration = uniform(0.86, 1.12)
    yaw = float(np.clip(normal(0.0, 0.045), -0.1, 0.1))
    dome = 1.0 + float(np.clip(normal(0.0, 0.035), -0.08, 0.08))
    return Patient(
        centre=(normal(0.0, 0.07), -0.74 + normal(0.0, 0.075)),
        scale=(0.79 * size * uniform(0.94, 1.06), 1.17 * size * inspiration),
        tilt=float(np.clip(normal(0.0, 0.05), -0.13, 0.13)),
        lung_width=(0.97 + yaw + normal(0, 0.02), 0.97 - yaw + normal(0, 0.02)),
        dome=(dome, dome + uniform(-0.01, 0.10)),
        angle_depth=uniform(0.14, 0.26),
        habitus=uniform(0.0, 1.0),
        axilla=uniform(0.15, 0.55),
        shoulder=uniform(-0.30, -0.12),
        midline=yaw * 0.5,
        heart_ratio=uniform(0.38, 0.50),
        heart_shift=0.15 + 0.6 * yaw + normal(0.0, 0.035),
        heart_lean=uniform(0.1, 0.4),
        rib_spacing=uniform(0.098, 0.122),
        rib_drop=uniform(0.38, 0.66),
        rib_phase=(uniform(0, 1), uniform(0, 1)),
        rib_strength=uniform(0.045, 0.10),
        breast=uniform(0.06, 0.2) if rng.random() < 0.4 else 0.0,
        breast_level=uniform(0.78, 1.02),
        gas=uniform(0.2, 0.5) if rng.random() < 0.65 else 0.0,
        vascularity=uniform(0.45, 0.9),
        exposure=float(np.clip(normal(0.0, 0.05), -0.12, 0.12)),
        contrast=uniform(0.82, 1.1),
    )


def step(x: Map, width: float) -> Map:
    """Soft step from 0 (x well below 0) to 1, about `width` wide."""
    rise: Map = np.float32(0.5) + np.float32(0.5) * np.tanh(x * np.float32(1.0 / width))
    return rise


@lru_cache(maxsize=16)
def _pixel_grid(pixels: int) -> tuple[Map, Map]:
    axis = ((np.arange(pixels, dtype=np.float32) + 0.5) * (2.0 / pixels) - 1.0).astype(np.float32)
    return axis[None, :], axis[:, None]


@lru_cache(maxsize=64)
def _bump_basis(pixels: int, knots: int) -> Map:
    position = (np.arange(pixels) + 0.5) / pixels * (knots - 1)
    weight = np.exp(-1.5 * (position[:, None] - np.arange(knots)[None, :]) ** 2)
    weight /= weight.sum(axis=1, keepdims=True)
    return weight.astype(np.float32)


def smooth_noise(rng: np.random.Generator, pixels: int, knots: int) -> Map:
    """Noise with about `knots` blobs a side; variance of order 1. Shape (pixels, pixels)."""
    basis = _bump_basis(pixels, knots)
    coarse = rng.standard_normal((knots, knots), dtype=np.float32)
    noise: Map = np.float32(1.6) * (basis @ coarse @ basis.T)
    return noise


class Anatomy:
    """The maps of one patient, (P, P) float32 each, P the supersampled side in pixels."""

    def __init__(self, patient: Patient, rng: np.random.Generator, pixels: int) -> None:
        """Lay out the patient.

        Args:
            patient: what `draw_patient` drew.
            rng: stream for texture, vessels and devices.
            pixels: side of the supersampled image.
        """
        self.patient, self.pixels = patient, pixels
        x, y = _pixel_grid(pixels)
        self._cos, self._sin = np.cos(patient.tilt), np.sin(patient.tilt)
        dx, dy = x - np.float32(patient.centre[0]), y - np.float32(patient.centre[1])
        cos, sin = np.float32(self._cos), np.float32(self._sin)
        self.u: Map = (cos * dx + sin * dy) / np.float32(patient.scale[0])
        self.v: Map = (cos * dy - sin * dx) / np.float32(patient.scale[1])
        self.a: Map = np.abs(self.u)
        self.left = self.u > 0
        self._lay_lungs()
        self.heart = self.heart_map(patient.heart_ratio)
        self.vessels = self._vessels(rng)
        texture = smooth_noise(rng, pixels, 12) + np.float32(0.7) * smooth_noise(rng, pixels, 28)
        self.air: Map = self.lung * self.depth * (1 - np.float32(0.05) * texture)
        self.tissue: Map = self._body() + self._bones() + self._soft_parts(rng)
        self.tissue += self._devices(rng)

    def per_side(self, pair: tuple[float, float]) -> Map:
        """A value per side of the body, spread over the pixels."""
        return np.where(self.left, np.float32(pair[1]), np.float32(pair[0]))

    def _lay_lungs(self) -> None:
        patient, a, v = self.patient, self.a, self.v
        width = self.per_side(patient.lung_width)
        rise = np.clip((np.float32(0.9) - v) / np.float32(0.92), 0, 1)
        self.lateral: Map = np.float32(0.36) + (width - np.float32(0.36)) * np.sqrt(
            1 - rise ** np.float32(1.8)
        )
        off = a - np.float32(0.42)
        fall = np.where(off > 0, np.float32(patient.angle_depth / 0.3), np.float32(0.42))
        self.diaphragm: Map = self.per_side(patient.dome) + fall * off * off
        off = a - np.float32(0.34)
        self.apex: Map = np.float32(1.1) * off * off
        medial = np.float32(0.13) + np.float32(0.08) * np.abs(v - np.float32(0.3))
        medial = medial + self.per_side((patient.midline, -patient.midline))
        self.lung: Map = (
            step(self.lateral - a, 0.03)
            * step(a - medial, 0.035)
            * step(v - self.apex, 0.035)
            * step(self.diaphragm - v, 0.022)
        )
        across = (a - np.float32(0.52)) / np.float32(0.62)
        self.depth: Map = (
            np.float32(0.55) + np.float32(0.45) * np.sqrt(np.clip(1 - across * across, 0, 1))
        ) * (np.float32(0.72) + np.float32(0.28) * step(v - np.float32(0.2), 0.25))

    def heart_map(self, ratio: float) -> Map:
        """Share of the chest's depth that heart and great vessels fill.

        Args:
            ratio: cardiothoracic ratio: width of the heart over that of the thorax.
        """
        patient, u, v = self.patient, self.u, self.v
        radius = ratio * (patient.lung_width[0] + patient.lung_width[1]) / 2
        tall = 0.27 + 0.22 * ratio
        level = patient.dome[1] + 0.08 - tall
        shift = patient.heart_shift + 0.35 * (ratio - 0.43)
        down = (v - np.float32(level)) / np.float32(tall)
        across = u - np.float32(shift) - np.float32(patient.heart_lean * tall) * down
        taper = np.float32(radius) * (np.float32(0.9) + np.float32(0.22) * np.clip(down, -1, 1))
        reach = np.sqrt((across / taper) ** 2 + down * down)
        knob = np.hypot(
            (u - np.float32(0.14 + patient.midline)) / np.float32(0.15),
            (v - np.float32(0.3)) / np.float32(0.11),
        )
        trunk = np.float32(0.19) * step(np.float32(0.62) - v, 0.1)
        trunk = trunk - np.abs(u - np.float32(0.05 + patient.midline))
        heart: Map = np.maximum(step(1 - reach, 0.13), np.float32(0.7) * step(1 - knob, 0.3))
        heart = np.maximum(heart, np.float32(0.8) * step(trunk, 0.06))
        return heart

    def _body(self) -> Map:
        patient, a, v = self.patient, self.a, self.v
        waist = 1.12 + 0.3 * patient.habitus
        half = np.float32(waist) + np.float32(0.8) * step(np.float32(patient.axilla) - v, 0.08)
        side = np.clip((half - a) / np.float32(0.45), 0, 1) ** np.float32(0.65)
        slope = np.float32(patient.shoulder) + np.float32(0.26) * np.clip(a - 0.3, 0, None)
        top = np.clip((v - slope) / np.float32(0.42), 0, 1) ** np.float32(0.65)
        neck = np.clip((np.float32(0.46) - a) / np.float32(0.3), 0, 1) ** np.float32(0.65)
        build = 0.78 + 0.22 * patient.habitus
        trunk = np.minimum(side, np.maximum(top, neck * np.float32(0.62)))
        belly = step(v - self.diaphragm, 0.03) * step(v - np.float32(0.8), 0.1)
        outer = np.float32(0.78) + np.float32(0.22) * step(np.float32(1.12) - a, 0.12)
        body: Map = trunk * outer * np.float32(build) + np.float32(0.16) * belly * side
        return body

    def _bones(self) -> Map:
        patient, u, v, a = self.patient, self.u, self.v, self.a
        turn = np.float32(2 * np.pi)
        cage = step(self.lateral + np.float32(0.06) - a, 0.03) * step(v + np.float32(0.02), 0.03)
        cage = cage * (np.float32(0.3) + np.float32(0.7) * step(self.diaphragm - v, 0.05))
        cage = cage * step(np.float32(1.25) - v, 0.08)
        bow = np.float32(patient.rib_drop) * (a - np.float32(0.3)) ** 2
        phase = (v - bow) / np.float32(patient.rib_spacing) + self.per_side(patient.rib_phase)
        back = step(np.cos(turn * phase) - np.float32(0.2), 0.65)
        bow = np.float32(0.5) * np.clip(1.05 - a, 0, 1) ** np.float32(1.25)
        phase = (v - bow) / np.float32(patient.rib_spacing * 1.12) + np.float32(0.3)
        front = step(np.cos(turn * phase) - np.float32(0.35), 0.5) * step(a - np.float32(0.42), 0.1)
        strength = np.float32(patient.rib_strength)
        bones = cage * strength * (back + np.float32(0.45) * front)
        wall = np.abs(a - self.lateral - np.float32(0.03)) / np.float32(0.035)
        bones += np.float32(0.5) * strength * np.exp(-wall * wall) * step(v, 0.1)
        spine = np.abs(u - np.float32(patient.midline * 0.5))
        fade = np.float32(0.45) + np.float32(0.55) * step(v - np.float32(0.1), 0.15)
        discs = np.float32(0.85) + np.float32(0.15) * np.cos(turn * v / np.float32(0.092))
        bones += np.float32(0.12) * step(np.float32(0.1) - spine, 0.035) * discs * fade
        collar = np.float32(0.06 + 0.1 * patient.shoulder) - np.float32(0.09) * np.sin(
            np.float32(3.2) * (a - np.float32(0.1))
        )
        bar = np.abs(v - collar + np.float32(0.02)) / np.float32(0.026)
        ends = step(a - np.float32(0.12), 0.04) * step(np.float32(1.02) - a, 0.05)
        bones += np.float32(0.12) * np.exp(-bar * bar) * ends
        blade = a - np.float32(0.98) + np.float32(0.35) * (v - np.float32(0.12))
        rim = np.exp(-((blade / np.float32(0.03)) ** 2)) + np.float32(0.6) * step(blade, 0.03)
        low = step(np.float32(0.48) - v, 0.06) * step(v + np.float32(0.02), 0.05)
        bones += np.float32(0.055) * rim * low * step(np.float32(1.3) - a, 0.06)
        joint = np.hypot((a - np.float32(1.3)) / np.float32(0.17), (v - 0.06) / np.float32(0.11))
        bones += np.float32(0.12) * step(1 - joint, 0.15)
        return bones

    def _soft_parts(self, rng: np.random.Generator) -> Map:
        patient, u, v, a = self.patient, self.u, self.v, self.a
        pipe = np.abs(u - np.float32(patient.midline + 0.02)) / np.float32(0.055)
        parts: Map = np.float32(-0.12) * np.exp(-pipe * pipe) * step(np.float32(0.34) - v, 0.06)
        if patient.breast:
            fold = np.hypot(
                (a - np.float32(0.62)) / np.float32(0.42),
                (v - np.float32(patient.breast_level)) / np.float32(0.27),
            )
            parts += np.float32(patient.breast) * step(1 - fold, 0.14)
        if patient.gas:
            spot_u, spot_v = rng.uniform(0.3, 0.62), patient.dome[1] + rng.uniform(0.06, 0.15)
            bubble = np.hypot(
                (u - np.float32(spot_u)) / np.float32(rng.uniform(0.13, 0.26)),
                (v - np.float32(spot_v)) / np.float32(rng.uniform(0.05, 0.09)),
            )
            parts -= np.float32(patient.gas) * step(1 - bubble, 0.16)
        if rng.random() < 0.2:
            side, spot = rng.choice((-1, 1)), rng.uniform(0.4, 0.6)
            parts += self.spot(side * spot, rng.uniform(0.72, 0.85), 0.045, 0.16)
        parts += np.float32(0.02) * smooth_noise(rng, self.pixels, 6) * step(1.3 - a, 0.2)
        return parts

    def spot(self, u: float, v: float, radius: float, strength: float) -> Map:
        """A ball's shadow: `radius` in units of u, `strength` at its middle."""
        aspect = self.patient.scale[1] / self.patient.scale[0]
        far = (self.u - np.float32(u)) ** 2 + ((self.v - np.float32(v)) * np.float32(aspect)) ** 2
        shadow: Map = np.float32(strength) * np.exp(-((far / np.float32(radius * radius)) ** 2))
        return shadow

    def _splat(self, u: Map, v: Map, weight: Map) -> Map:
        patient = self.patient
        across, down = u * patient.scale[0], v * patient.scale[1]
        x = patient.centre[0] + self._cos * across - self._sin * down
        y = patient.centre[1] + self._sin * across + self._cos * down
        column = ((x + 1) * (self.pixels / 2)).astype(np.int64)
        row = ((y + 1) * (self.pixels / 2)).astype(np.int64)
        inside = (column >= 0) & (column < self.pixels) & (row >= 0) & (row < self.pixels)
        flat = row[inside] * self.pixels + column[inside]
        drawn = np.bincount(flat, weight[inside], minlength=self.pixels**2)
        return drawn.reshape(self.pixels, self.pixels).astype(np.float32)

    def _vessels(self, rng: np.random.Generator) -> Map:
        roots, levels, fine = 7, 4, self.pixels / 128
        count = round(14 * fine)
        side = np.repeat((-1.0, 1.0), roots)
        start_u = side * 0.22 + rng.normal(0, 0.02, 2 * roots)
        start_v = np.where(side > 0, 0.43, 0.47) + rng.normal(0, 0.035, 2 * roots)
        angle = np.tile(np.linspace(-1.35, 1.35, roots), 2) + rng.normal(0, 0.14, 2 * roots)
        calibre, length = 0.3 * self.patient.vascularity, 0.2
        points: list[tuple[Map, Map, Map]] = []
        along = np.linspace(0, 1, count, endpoint=False)
        for _ in range(levels):
            reach = length * rng.uniform(0.7, 1.3, angle.size)
            bend = rng.normal(0, 0.12, angle.size)
            heading = angle[:, None] + bend[:, None] * along
            u = start_u[:, None] + (side * reach)[:, None] * along * np.cos(heading)
            v = start_v[:, None] + 0.85 * reach[:, None] * along * np.sin(heading)
            weight = np.broadcast_to((calibre * reach)[:, None], u.shape)
            points.append((u.ravel(), v.ravel(), weight.ravel()))
            end_u, end_v = u[:, -1], v[:, -1]
            start_u, start_v, side = np.tile(end_u, 2), np.tile(end_v, 2), np.tile(side, 2)
            fork = rng.uniform(0.15, 0.5, angle.size)
            angle = np.concatenate((angle - fork, angle + fork))
            calibre, length = calibre * 0.66, length * 0.86
        lines = self._splat(*(np.concatenate(part) for part in zip(*points, strict=True)))
        drawn: Map = gaussian_filter(lines, VESSEL_SIGMA * fine, truncate=3.0)
        drawn *= np.float32(5.5 / fine)
        for _ in range(rng.integers(0, 3)):
            at_u = rng.choice((-1, 1)) * rng.uniform(0.24, 0.42)
            drawn += self.spot(at_u, rng.uniform(0.36, 0.62), 0.035, rng.uniform(0.08, 0.18))
        hilum = np.hypot((self.a - 0.22) / np.float32(0.12), (self.v - 0.46) / np.float32(0.13))
        drawn += np.float32(0.12) * np.exp(-hilum * hilum)
        return drawn

    def _devices(self, rng: np.random.Generator) -> Map:
        drawn: Map = np.zeros_like(self.u)
        fine = self.pixels / 128
        if rng.random() < 0.2:
            along = np.linspace(0, 1, round(160 * fine))
            for _ in range(rng.integers(1, 4)):
                from_u, to_u = rng.uniform(-0.9, 0.9, 2)
                from_v, to_v, sag = rng.uniform(0.1, 0.7), rng.uniform(0.6, 1.5), rng.normal(0, 0.2)
                bow = sag * np.sin(np.pi * along)
                u, v = from_u + (to_u - from_u) * along + bow, from_v + (to_v - from_v) * along
                drawn += self._splat(u, v, np.full(along.size, 0.2 / fine))
                drawn += self.spot(from_u, from_v, 0.035, 0.25)
            drawn = gaussian_filter(drawn, 0.6 * fine, truncate=3.0)
        if rng.random() < 0.07:
            at_u, at_v = rng.choice((-1, 1)) * rng.uniform(0.55, 0.75), rng.uniform(0.12, 0.3)
            box = ((self.u - at_u) / np.float32(0.16)) ** 4 + ((self.v - at_v) / 0.09) ** 4
            drawn += np.float32(0.5) * step(1 - box, 0.5)
            along = np.linspace(0, 1, round(140 * fine))
            u = at_u + (0.16 - at_u) * along**0.6
            v = at_v - 0.1 * np.sin(np.pi * along) + (0.75 - at_v) * along**3
            lead = self._splat(u, v, np.full(along.size, 0.5 / fine))
            drawn += gaussian_filter(lead, 0.7 * fine, truncate=3.0)
        return drawn

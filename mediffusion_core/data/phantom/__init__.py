"""Chest phantoms: synthetic radiographs with known findings, drawn from seeds alone.

They stand in for a data set where none may be had: each patient has anatomy, pose and noise of
its own, each site its prevalences and its scanner. The same patient can be drawn with and
without a finding, which no real data set offers, so counterfactuals can be evaluated exactly.
"""

from mediffusion_core.data.phantom.drawing import (
    FINDINGS,
    SCANNERS,
    SMALLEST_SIZE,
    change_mask,
    findings_of,
    prevalence,
    render,
)

__all__ = [
    "FINDINGS",
    "SCANNERS",
    "SMALLEST_SIZE",
    "change_mask",
    "findings_of",
    "prevalence",
    "render",
]

"""The cells of the study: a private run of one ε and one seed, its attacks, and its audit.

`python -m simulations.studies.privacy.cells FOLDER` makes the measurement described in a folder.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from configs.compose import compose
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.evaluation.membership_inference import NOISE_LEVELS
from simulations.engine.cells import DESCRIPTION, run_described
from simulations.engine.simulate import read_launch
from simulations.studies.attack.reconstruction import STEPS
from simulations.studies.attack.study import ATTACK, study_attack
from simulations.studies.attack.update import DRAWS, MOST
from simulations.studies.audit.study import audit_figures
from simulations.studies.privacy.promises import GROUPS, promise_figures
from simulations.studies.run_cells import (
    Measure,
    MeasureCell,
    RunCell,
    make_measurement,
    run_cell_of,
)

NO_NOISE = 1e-6
"""σ where ε is infinite: sampling and clipping as in the other runs, and next to no noise."""
SHADOWS = 8
"""Shadow models of the likelihood-ratio attack."""
ATTACKED = (SHADOWS, NOISE_LEVELS, MOST, DRAWS, STEPS, GROUPS, NO_NOISE)
"""The constants that figures of the attacks depend on."""
PROMISE = "promise"
"""Figure of the attacks: what the run promises."""


@dataclass(frozen=True)
class PrivacyMeasure(MeasureCell):
    """The attacks on a run, or its audit."""

    module: ClassVar[str] = "simulations.studies.privacy.cells"

    canaries: int
    """Of the audit."""

    @cached_property
    def settings_hash(self) -> str:
        """Hash of the run, the measurement, and its sizes."""
        used = (self.canaries,) if self.measure == "audit" else ATTACKED
        return fingerprint(run=self.run.settings_hash, measure=self.measure, sizes=used)[:16]

    def description(self) -> Mapping[str, Any]:
        """As its process reads it."""
        return {**super().description(), "canaries": self.canaries}


def epsilon_text(epsilon: float) -> str:
    """ε as it is written: ∞ without noise."""
    return "∞" if math.isinf(epsilon) else f"{epsilon:g}"


def private_run(base: tuple[str, ...], epsilon: float, seed: int) -> RunCell:
    """The run of an ε and a seed. All runs of a study have the same settings but for the noise."""
    noise = (
        ("privacy.target_epsilon=null", f"privacy.noise_multiplier={NO_NOISE:g}")
        if math.isinf(epsilon)
        else (f"privacy.target_epsilon={epsilon:g}", "privacy.noise_multiplier=null")
    )
    # Noised sums over validation units have an ε of their own, which a small ε would refuse.
    overrides = (*base, *noise, "privacy.validation_noise=null", f"seed={seed}")
    title = f"ε = {epsilon_text(epsilon)}, seed {seed}"
    return run_cell_of("private", title, overrides)


def measure_attacks(run: Path, output: Path) -> dict[str, Any]:
    """The figures of all attacks that `study attack` makes, beside what the run promises."""
    device = compose(*read_launch(run)).device
    attacks = json.loads(study_attack(run, output / ATTACK, device, SHADOWS).read_text())
    return {**attacks, PROMISE: promise_figures(run)}


def measure_audit(run: Path, output: Path) -> dict[str, Any]:
    """The figures of `study audit`, which makes the run's steps again without any image."""
    canaries = json.loads((output / DESCRIPTION).read_text())["canaries"]
    return audit_figures(run, canaries, Console(soft_wrap=True))


MEASURES: Mapping[str, Measure] = {"attack": measure_attacks, "audit": measure_audit}


if __name__ == "__main__":
    run_described(partial(make_measurement, MEASURES))

"""`fed-mediffusion study audit`: a lower bound of ε, measured on the private steps of a run.

The steps of both stages are made again with the run's network, sample rate, noise, bound and number
of steps, on synthetic units and canaries. No patient's image is read, so nothing is charged. An
implementation that adds too little noise, clips too late or samples too often gives a lower bound
above the ε that is promised for these steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from configs import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.inference.joint_model import TrainedModel, build_joint
from mediffusion_core.models import Autoencoder
from mediffusion_core.privacy.accounting.accountant import epsilon
from mediffusion_core.privacy.accounting.plan import AUTOENCODER, JOINT, Plan
from mediffusion_core.privacy.auditing.canaries import AuditedRound
from mediffusion_core.privacy.auditing.lower_bound import (
    epsilon_lower_bound,
    largest_lower_bound,
)
from mediffusion_core.privacy.dp_sgd.autoencoder_stage import train_private_autoencoder
from mediffusion_core.privacy.dp_sgd.joint_stage import train_private_joint, training_parts
from mediffusion_core.privacy.dp_sgd.randomness import secret_seed
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.reporting.report import write_report
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings import Settings
from mediffusion_core.training.autoencoder import autoencoder_optimizer
from mediffusion_core.training.joint import joint_optimizer
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_round import LocalRound
from simulations.engine.simulate import read_launch
from simulations.studies.promises import read_summary, worst_site

SYNTHETIC = 16
"""Units beside the canaries."""
CONFIDENCE, STAGE_CONFIDENCE = 0.95, 0.975
"""Of both stages together, and of each."""


def study_audit(run: Path, canaries: int) -> Path:
    """Audits the stages of a private run, at the site of the largest ε; 95 % confidence.

    The figures go to the run's summary, from which report and model card take them.

    Args:
        run: Folder of a finished run.
        canaries: Number of canaries. Each takes part with probability 1/2.

    Returns:
        The report, made anew.

    Raises:
        UserError: if the run was not started by `simulate`, is not private or has not ended, or if
            a bound is above the promised ε.
    """
    console = Console(soft_wrap=True)
    figures = audit_figures(run, canaries, console)
    write_json(run / "summary.json", {**read_summary(run), "audit": figures})
    console.print(_table(figures))
    report = write_report(run)
    for fault in broken_promises(figures):
        raise UserError(fault)
    return report


def audit_figures(run: Path, canaries: int, console: Console) -> dict[str, Any]:
    """The promised ε and the measured lower bound of each stage, at the site of the largest ε.

    Args:
        run: Folder of a finished run.
        canaries: Number of canaries. Each takes part with probability 1/2.
        console: Shows the progress.

    Raises:
        UserError: if the run was not started by `simulate`, is not private or has not ended, or if
            its kind of clipping cannot be audited.
    """
    settings = compose(*read_launch(run.resolve()))
    if not settings.privacy.enabled:
        raise UserError(f"{run} was not trained with privacy.enabled; there is no ε to audit")
    classes = len(TrainedModel.load(run / "model", torch.device("cpu")).classes)
    summary = read_summary(run)
    site, plan = worst_site(run, summary, settings)
    promised = summary["privacy"]["sites"][site]["epsilon"]
    stages = {}
    with Progress(console=console, transient=True) as progress:
        for stage, _, rounds in plan.stages:
            steps = sum(plan.steps(stage, number) for number in range(1, rounds + 1))
            if steps:
                task = progress.add_task(f"{stage}, {steps} steps", total=steps)
                audit = _Audit(settings, plan, classes, canaries)
                told = partial(_tell, progress, task)
                stages[stage] = audit.of(stage, steps, told)
    return {"site": site, "epsilon": promised, "confidence": CONFIDENCE, "stages": stages}


def broken_promises(figures: Mapping[str, Any]) -> list[str]:
    """A line on each stage whose lower bound is above its promised ε."""
    return [
        f"the {stage} stage has an ε of at least {one['lower_bound']:.3g}, and its promise is "
        f"{one['epsilon']:.3g}: sampling, clipping, noise or accounting is wrong"
        for stage, one in figures["stages"].items()
        if one["lower_bound"] > one["epsilon"]
    ]


def _tell(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


@dataclass(frozen=True)
class _Audit:
    """Stages of one run with canaries."""

    settings: Settings
    plan: Plan
    classes: int
    canaries: int

    def of(self, stage: str, steps: int, on_step: Callable[[int], None]) -> dict[str, Any]:
        """Makes the steps of a stage; their promised ε and its measured lower bound."""
        delta = self.settings.privacy.target_delta
        took_part = torch.rand(self.canaries) < 0.5
        private_round = AuditedRound(
            index=UnitIndex(torch.arange(SYNTHETIC), [str(one) for one in range(SYNTHETIC)]),
            mechanism=self.plan.mechanism(),
            privacy=self.settings.privacy,
            steps=steps,
            current=LocalRound(1, 1, secret_seed(), on_step=lambda done, *_: on_step(done)),
            took_part=took_part,
            scores=torch.zeros(self.canaries, dtype=torch.float64),
        )
        {AUTOENCODER: self._autoencoder, JOINT: self._joint}[stage](private_round)
        scores = private_round.scores.numpy()
        bound = epsilon_lower_bound(scores, took_part.numpy(), delta, STAGE_CONFIDENCE)
        return {
            "epsilon": epsilon([self.plan.step_charge(steps)], delta),
            "lower_bound": bound,
            "largest_bound": largest_lower_bound(self.canaries, delta, STAGE_CONFIDENCE),
            "canaries": self.canaries,
            "steps": steps,
            "sample_rate": self.plan.sample_rate,
            "noise_multiplier": self.plan.noise_multiplier,
        }

    def _autoencoder(self, private_round: AuditedRound) -> None:
        settings, data = self.settings, self.settings.data
        autoencoder = Autoencoder(settings.model.autoencoder, data.channels)
        side = data.image_size
        pixels = np.random.default_rng().integers(
            0, 256, (SYNTHETIC, side, side, data.channels), dtype=np.uint8
        )
        images = ImageSet(pixels, np.arange(SYNTHETIC), torch.zeros(SYNTHETIC, self.classes))
        wanted = settings.training.autoencoder
        optimizer = autoencoder_optimizer(autoencoder, wanted)
        train_private_autoencoder(
            autoencoder, optimizer, images, wanted, settings.latent_shape, private_round
        )

    def _joint(self, private_round: AuditedRound) -> None:
        settings, wanted = self.settings, self.settings.training.joint
        joint = build_joint(settings, self.classes)
        latents = torch.randn(SYNTHETIC, *settings.latent_shape).half()
        targets = torch.zeros(SYNTHETIC, self.classes)
        targets[:, 0] = 1.0
        data = LatentSet(latents, latents[None], targets, multi_label=False)
        optimizer = joint_optimizer(joint, wanted)
        process = DiffusionProcess.of(settings.diffusion)
        with training_parts(joint, optimizer, wanted, settings.privacy):
            train_private_joint(joint, optimizer, data, wanted, process, private_round)


def _table(figures: dict[str, Any]) -> Table:
    title = f"site {figures['site']}, ε = {figures['epsilon']:.3g} for the whole run"
    table = Table(title=title, title_justify="left")
    for column in ("stage", "steps", "σ", "q", "ε promised", "ε at least", "provable"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, one in figures["stages"].items():
        names = ("noise_multiplier", "sample_rate", "epsilon", "lower_bound", "largest_bound")
        numbers = [one[name] for name in names]
        table.add_row(stage, str(one["steps"]), *(f"{number:.3g}" for number in numbers))
    return table

"""Time of a step and of a federation beside their baselines: one JSON line a figure.

python tests/benchmarks/bench_training.py

Ratios are of one process and one machine, from rounds in which each side is timed in turn, so that
a slow moment meets both. The step is that of the tiny preset at 64 px; the federation is four sites
of phantoms, and the same images, splits and steps in one place.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from figures import report
from torch import Tensor

from configs.compose import compose
from mediffusion_core.common.device import autocast
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.inference.joint_model import build_joint
from mediffusion_core.models import build_unet
from mediffusion_core.settings import Settings
from mediffusion_core.training.joint import joint_optimizer, train_joint
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_round import LocalRound
from simulations.engine.processes import run_to_end

STEPS, ROUNDS = 8, 5
CLASSES = 4
IMAGES = 512
LABELLED = 0.2


def median_seconds(sides: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Median time of each side, timed in turn after one call that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(ROUNDS):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


def settings_of(batch: int, labelled: int, *overrides: str) -> Settings:
    sizes = [f"training.joint.batch_size={batch}", f"training.joint.labelled_batch_size={labelled}"]
    epochs = f"training.joint.local_epochs={STEPS * batch / IMAGES}"
    return compose("config", [*sizes, epochs, *overrides])


def latents(settings: Settings) -> LatentSet:
    generator = torch.Generator().manual_seed(0)
    known = round(LABELLED * IMAGES)
    targets = torch.full((IMAGES, CLASSES), torch.nan)
    targets[:known] = (torch.rand(known, CLASSES, generator=generator) < 0.3).float()
    drawn = torch.randn(IMAGES, *settings.latent_shape, generator=generator).half()
    whitened = torch.randn(
        IMAGES, settings.training.joint.alignment.directions, generator=generator
    )
    soft = torch.rand(IMAGES, CLASSES, generator=generator)
    return LatentSet(
        drawn,
        drawn[None, :known],
        targets,
        multi_label=True,
        directions=whitened.half(),
        soft_targets=soft.half(),
    )


def ours(settings: Settings) -> Callable[[], None]:
    """STEPS steps of the joint stage as a site runs them."""
    torch.manual_seed(0)
    model = build_joint(settings, CLASSES)
    optimizer = joint_optimizer(model, settings.training.joint)
    data = latents(settings)

    def run() -> None:
        train_joint(
            model,
            optimizer,
            data,
            settings.training.joint,
            DiffusionProcess.of(settings.diffusion),
            LocalRound(1, 10, seed=0, precision=settings.training.precision),
        )

    return run


def diffusers_loop(settings: Settings) -> Callable[[], None]:
    """The training loop of diffusers' own tutorial on the same UNet: noise, predict, step."""
    torch.manual_seed(0)
    unet = build_unet(settings.model.unet, settings.latent_shape)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)  # as ours
    scheduler = DDPMScheduler(num_train_timesteps=settings.diffusion.timesteps)
    data = latents(settings).latents.float()
    batch = settings.training.joint.batch_size

    def run() -> None:
        unet.train()
        for step in range(STEPS):
            clean = data[step * batch % IMAGES :][:batch]
            noise = torch.randn_like(clean)
            timesteps = torch.randint(0, settings.diffusion.timesteps, (len(clean),))
            noised: Tensor = scheduler.add_noise(clean, noise, timesteps)  # type: ignore[arg-type]
            with autocast(settings.training.precision, clean.device):
                predicted = unet(noised, timesteps, return_dict=False)[0]
                loss = F.mse_loss(predicted.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def bench_steps(batch: int, labelled: int) -> None:
    """The joint step against diffusion alone, against two networks, and against diffusers' loop."""
    torch.set_num_threads(1)  # as a simulated site
    no_classifier, no_denoiser = (
        f"training.joint.{part}_weight=0" for part in ("classification", "diffusion")
    )
    seconds = median_seconds(
        {
            "joint": ours(settings_of(batch, labelled)),
            "diffusion": ours(settings_of(batch, labelled, no_classifier)),
            "classifier": ours(settings_of(batch, labelled, no_denoiser)),
            "diffusers": diffusers_loop(settings_of(batch, labelled)),
        }
    )
    sizes = {"batch_size": batch, "labelled_batch_size": labelled}
    report("joint step", seconds["joint"] / STEPS, "s", **sizes)
    two = seconds["diffusion"] + seconds["classifier"]
    for other, taken in (
        ("diffusion alone", seconds["diffusion"]),
        ("two separate networks", two),
        ("diffusers' training loop", seconds["diffusers"]),
    ):
        report(f"joint step / {other}", seconds["joint"] / taken, "ratio", **sizes)


def bench_alignment(batch: int, labelled: int, aligned: int) -> None:
    """The joint step with alignment and distillation against diffusion alone.

    Aligned rows pass the encoder alone. The second ratio is to a denoiser of as many rows as the
    step has in all.
    """
    torch.set_num_threads(1)  # as a simulated site
    aligning = [
        f"training.joint.alignment.{name}"
        for name in ("weight=1", "distillation_weight=2", f"batch_size={aligned}")
    ]
    alone = "training.joint.classification_weight=0"
    images = batch + labelled + aligned
    seconds = median_seconds(
        {
            "aligned": ours(settings_of(batch, labelled, *aligning)),
            "diffusion": ours(settings_of(batch, labelled, alone)),
            "as many": ours(settings_of(images, labelled, alone)),
        }
    )
    sizes = {"batch_size": batch, "labelled_batch_size": labelled, "aligned": aligned}
    report("joint step with alignment", seconds["aligned"] / STEPS, "s", **sizes)
    for other, taken in (
        ("diffusion alone", seconds["diffusion"]),
        ("diffusion alone of as many images", seconds["as many"]),
    ):
        report(f"joint step with alignment / {other}", seconds["aligned"] / taken, "ratio", **sizes)


def bench_federation() -> None:
    """`flwr run` of four sites against the same images and steps in one place, on all cores."""
    taken: dict[str, list[float]] = {"federated": [], "central": []}
    with tempfile.TemporaryDirectory() as place:
        run_training(Path(place) / "first", "federated")  # draws the phantoms for all
        for turn in range(2):
            for kind, times in taken.items():
                times.append(run_training(Path(place) / f"{kind}-{turn}", kind))
    federated, central = (min(times) for times in taken.values())
    report("federated run of 4 sites", federated, "s")
    report("the same samples centrally", central, "s")
    report("federated / central", federated / central, "ratio")


def run_training(folder: Path, kind: str) -> float:
    """Seconds of both stages' rounds of one run, as its records say, each with its checkpoint.

    Encoding and evaluation are left out, but for the PSNR after each autoencoder round.
    """
    overrides = [
        "data.phantom.patients_per_site=[800,800,800,800]",
        "federation.num_sites=4",
        "federation.autoencoder_rounds=2",
        "federation.num_rounds=4",
        "evaluation.every=4",
        "evaluation.num_samples=16",
        "evaluation.counterfactual.count=2",
        f"data.store='{folder.parent / 'store'}'",
        f"run.folder='{folder}'",
        # In one place the one process has every core.
        *([f"federation.cpus_per_site={os.cpu_count()}"] if kind == "central" else []),
        *(["federation.pool_sites=true"] if kind == "central" else []),
    ]
    done = run_to_end([sys.executable, "-m", "simulations.cli.main", "simulate", *overrides])
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds, before = 0.0, 0.0
    for line in lines:
        if line["stage"] in ("autoencoder", "joint"):
            seconds += line["time"] - before
        before = line["time"]
    return seconds


if __name__ == "__main__":
    bench_steps(64, 13)  # a fifth of the images labelled, each seen once
    defaults = compose("config", []).training.joint
    bench_steps(defaults.batch_size, defaults.labelled_batch_size)
    bench_alignment(64, 13, 32)
    bench_alignment(8, 16, 48)  # the batches of experiment=isic2019_public_features
    bench_federation()

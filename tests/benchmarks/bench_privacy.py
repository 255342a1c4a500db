"""Time and memory of a private step beside the plain one: one JSON line a figure.

python tests/benchmarks/bench_privacy.py

The same network, images and logical batch of 64, one core; a private step draws its units by
Poisson sampling and sends up to 64 at once through the network. Each side is timed in turn, after a
call that warms up. Memory is the peak over its steps of a process of its own, beyond what it had
before them.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from bench_training import CLASSES, IMAGES, latents, ours, settings_of
from figures import report
from peak_memory import grown_by

from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.inference.joint_model import build_joint
from mediffusion_core.privacy.dp_sgd.joint_rows import UnitLosses, UnitRows
from mediffusion_core.privacy.dp_sgd.noise import Mechanism, private_gradients
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import PerSampleGradients
from mediffusion_core.privacy.unit_streams import UnitStreams
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings import Settings
from mediffusion_core.training.joint import joint_optimizer

STEPS, ROUNDS, BATCH, LABELLED = 2, 3, 64, 13
MODES = ("hooks", "ghost")
SIDES = ("plain", *MODES)


def private(settings: Settings, mode: str) -> Callable[[], None]:
    """STEPS private steps of the joint stage as a site makes them; no check before them."""
    torch.manual_seed(0)
    model = build_joint(settings, CLASSES).train()
    training = settings.training.joint
    optimizer = joint_optimizer(model, training)
    rows = UnitRows(
        latents(settings),
        UnitIndex(torch.arange(IMAGES), names := [str(number) for number in range(IMAGES)]),
        training,
        DiffusionProcess.of(settings.diffusion),
        UnitStreams(names),
    )
    weights = (training.diffusion_weight, training.classification_weight)
    losses = UnitLosses(model, weights, multi_label=True)
    single = mode == "ghost"
    gradients = PerSampleGradients(model, losses.single if single else losses.joint)
    mechanism = Mechanism(BATCH / IMAGES, 1.0, 1.0, BATCH, BATCH)

    def run() -> None:
        for step in range(STEPS):
            draw = partial(rows.single, step)
            if not single:
                draw = partial(rows.joint, step, multiplicity=1, weights=weights)
            private_gradients(gradients, draw, mechanism, IMAGES)
            optimizer.step()
            optimizer.zero_grad()

    return run


def side(name: str, overrides: tuple[str, ...]) -> Callable[[], None]:
    epochs = f"training.joint.local_epochs={STEPS * BATCH / IMAGES}"
    settings = settings_of(BATCH, LABELLED, "training.precision=fp32", epochs, *overrides)
    return ours(settings) if name == "plain" else private(settings, name)


def peak(name: str, overrides: tuple[str, ...]) -> float:
    """MB by which a process of its own grows in its first steps."""
    call = [sys.executable, __file__, "--peak", name, *overrides]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return float(done.stdout)


def bench(preset: str) -> None:
    overrides = (f"model={preset}",)
    sides = {name: side(name, overrides) for name in SIDES}
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    for run in sides.values():
        run()
    for _ in range(ROUNDS):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    memory = {name: peak(name, overrides) for name in SIDES}
    report("plain joint step in fp32", seconds["plain"] / STEPS, "s", model=preset)
    for name in MODES:
        sent = {"model": preset, "physical_batch_size": BATCH}
        time_ratio, memory_ratio = (each[name] / each["plain"] for each in (seconds, memory))
        report(f"private step, {name} / plain", time_ratio, "ratio", **sent)
        report(f"memory of it, {name} / plain", memory_ratio, "ratio", **sent)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as a simulated site
    if sys.argv[1:2] == ["--peak"]:
        print(grown_by(side(sys.argv[2], tuple(sys.argv[3:]))))
    else:
        bench("tiny")

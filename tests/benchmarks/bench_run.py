"""Seconds to each stage of a short run, its bytes and memory, and the time of counterfactuals.

python tests/benchmarks/bench_run.py [RUN]

The run is the default one with one round of each stage, as `make simulate` starts it. Memory is
that of all its processes, shared pages counted once. Counterfactuals are of the model of RUN, or of
the short run, whose search takes longer since its classifier is hardly trained.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from figures import report

from configs.compose import compose
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.inference.joint_model import TrainedModel
from simulations.engine.processes import memory_of, processes_with
from simulations.engine.simulate import read_launch
from simulations.studies.guidance.methods import Baseline, Ours, timed

COMMAND = (sys.executable, "-m", "simulations.cli.main")
SHORT = ("federation.autoencoder_rounds=1", "federation.num_rounds=1", "evaluation.every=1")
MARKER = "FED_MEDIFFUSION_BENCHMARK"
POLL = 0.1
IMAGES = 16
START, SCALE = 0.4, 300.0
"""Noise level and scale of the published procedure, in the middle of its authors' ranges."""


def bench_help() -> None:
    """Seconds of `--help`, after one call that compiles the modules."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    report("fed-mediffusion --help", min(taken[1:]), "s")


def bench_stages(folder: Path) -> None:
    """From the command to the first end of each stage, and to the report."""
    command = [*COMMAND, "simulate", *SHORT, f"run.folder='{folder}'"]
    began, seen, peak, before = time.perf_counter(), set[str](), 0, 0.0
    environment = {**os.environ, MARKER: str(os.getpid())}
    with (folder.parent / "log.txt").open("wb") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while running.poll() is None:
            peak = max(peak, memory_of(processes_with(MARKER, str(os.getpid()))))
            for line in lines_of(folder):
                if (stage := str(line["stage"])) not in seen:
                    seen.add(stage)
                    before = time.perf_counter() - began
                    report("from the command to the first end of a stage", before, "s", stage=stage)
            time.sleep(POLL)
    if running.returncode:
        sys.exit((folder.parent / "log.txt").read_text())
    report("from the command to the report", time.perf_counter() - began, "s")
    report("memory of the run", peak / 1e9, "GB")
    for line in lines_of(folder):
        if "traffic" in line:
            moved = sum(sum(site.values()) for site in line["traffic"].values())
            report("bytes of a round", moved / 1e6, "MB", stage=line["stage"])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` that are whole."""
    path = folder / "metrics.jsonl"
    written = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in written.splitlines(keepends=True) if line.endswith("\n")]


def bench_counterfactuals(run: Path) -> None:
    """Our search against all steps of the published procedure, on the same images and model."""
    torch.set_num_threads(1)
    settings = compose(*read_launch(run))
    model = TrainedModel.load(run / "model", torch.device("cpu"))
    images = open_federated_dataset(settings).test().take(torch.arange(IMAGES))
    latents = model.encode(images)
    finding = torch.arange(IMAGES) % len(model.classes)
    absent = model.logits(latents)[torch.arange(IMAGES), finding] <= 0
    target, detail = Target(finding, absent, model.multi_label), model.detail(images, latents)
    methods = Ours("ours", settings.evaluation.counterfactual), Baseline("published", START, SCALE)
    seconds = [timed(method, model, latents, target, detail)[1] for method in methods]
    report("a counterfactual", seconds[0], "s", images=IMAGES)
    report("published procedure / ours", seconds[1] / seconds[0], "ratio", images=IMAGES)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        bench_help()
        bench_stages(Path(place) / "run")
        bench_counterfactuals(Path(sys.argv[1] if sys.argv[1:] else Path(place) / "run"))

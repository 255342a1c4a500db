"""Fixtures of several folders of tests: the smallest federation that does everything."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# How long an example takes says nothing here: other work may share the cores.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Two tests at once must not each take all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The secret of simulated sites must not be drawn in the home of who runs the tests.
os.environ.setdefault("XDG_DATA_HOME", tempfile.mkdtemp(prefix="fed-mediffusion-data-"))

# A shell ignores Ctrl-C for what it starts in the background, and the processes under test would
# inherit that.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# Every number that a figure depends on stands here, so that tuning a default changes no figure.
TINY = (
    "seed=1",
    "data=phantom",
    "data.image_size=32",
    "data.phantom.patients_per_site=[60,60,60]",
    "data.labelled_fraction=0.4",
    "data.labelled_fraction_by_site.site-2=0",
    "data.test_fraction=0.15",
    "data.validation_fraction=0.1",
    "model.autoencoder.patch_size=2",
    "model.autoencoder.channels=[16,16]",
    "model.autoencoder.latent_channels=4",
    "model.autoencoder.norm_groups=16",
    "model.autoencoder.attention=false",
    "model.unet.channels=[32,32,32]",
    "model.unet.attention=[false,true,true]",
    "model.head.hidden=32",
    "diffusion.prediction=v_prediction",
    "training.precision=fp32",
    "training.autoencoder.local_epochs=2",
    "training.autoencoder.batch_size=16",
    "training.autoencoder.learning_rate=1e-3",
    "training.autoencoder.kl_weight=1e-3",
    "training.autoencoder.edge_weight=0.5",
    "training.autoencoder.warmup_steps=5",
    "training.joint.local_epochs=2",
    "training.joint.batch_size=16",
    "training.joint.labelled_batch_size=8",
    "training.joint.augmented_views=2",
    "training.joint.learning_rate=5e-4",
    "training.joint.head_learning_rate=5e-4",
    "training.joint.weight_decay=0.01",
    "training.joint.warmup_steps=2",
    "training.joint.classification_weight=0.05",
    "training.joint.noised_fraction=0.5",
    "training.joint.noised_max_timestep=0.6",
    "training.joint.max_grad_norm=1.0",
    "federation.cpus_per_site=1",  # each process that a site may need takes seconds to start
    "federation.autoencoder_rounds=2",
    "federation.num_rounds=3",
    "federation.ema_decay=0.6",
    "evaluation.every=3",
    "evaluation.num_samples=16",
    "evaluation.sampling_steps=4",
    "evaluation.num_thresholds=401",
    "evaluation.num_bootstraps=20",
    "evaluation.counterfactual.count=8",
    "evaluation.counterfactual.panel=2",
    "evaluation.counterfactual.num_inference_steps=4",
    "evaluation.counterfactual.strength=0.4",
    "evaluation.counterfactual.guidance_scale=2.0",
    "evaluation.counterfactual.proximity_weight=0.1",
    "evaluation.counterfactual.num_candidates=2",
    "evaluation.counterfactual.confidence=0.95",
    "evaluation.counterfactual.tolerance=1.0",
    "evaluation.counterfactual.mask_threshold=0.5",
    "evaluation.counterfactual.preserve_weight=1.0",
    "evaluation.counterfactual.inversion=true",
    "evaluation.counterfactual.noise_seed=0",
    "evaluation.counterfactual.solver=ddim",
)


FEW_COUNTERFACTUALS = (
    "evaluation.counterfactual.count=2",
    "evaluation.counterfactual.panel=1",
)


ONE_ROUND = (
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=1",
    "evaluation.every=1",
    *FEW_COUNTERFACTUALS,
)


FEW = (
    "data.phantom.patients_per_site=[24,24,24]",
    "training.autoencoder.local_epochs=1",
    "training.joint.local_epochs=1",
    *FEW_COUNTERFACTUALS,
)
ALIGNED = (
    "training.joint.alignment.weight=1",
    "training.joint.alignment.encoder=image-statistics",
    "training.joint.alignment.image_size=64",
    "training.joint.alignment.directions=8",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: tests that start programs mostly wait for them."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden",
        action="store_true",
        help="write what the tiny run gave to tests/golden instead of comparing it",
    )
    parser.addoption(
        "--fuzz-cases",
        type=int,
        default=500,
        help="cases of each target in tests/fuzz; .ci/run runs 2,000, make fuzz 100,000",
    )


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides of three sites of 60 phantom patients, the last one without a label."""
    return TINY


@pytest.fixture(scope="session")
def tiny_data(tiny: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the sites' phantoms alone."""
    return tuple(one for one in tiny if one.startswith(("seed=", "data")))


@pytest.fixture(scope="session")
def shortest(tiny: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `tiny` with one round of each stage, and few counterfactuals."""
    return (*tiny, *ONE_ROUND)  # the last of two values counts


@pytest.fixture(scope="session")
def few() -> tuple[str, ...]:
    """Overrides to follow those of `tiny`: few patients, steps and counterfactuals."""
    return FEW


@pytest.fixture(scope="session")
def aligned() -> tuple[str, ...]:
    """Overrides to follow those of `tiny`: alignment with an encoder that needs no network."""
    return ALIGNED


@pytest.fixture(scope="session")
def temporary() -> Iterator[Path]:
    """Where runs put their temporary files: Ray's socket paths below may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)

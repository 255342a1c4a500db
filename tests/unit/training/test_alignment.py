"""Alignment with a public encoder: the loss, its batches, and the kept features."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import as_batch
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.inference.joint_model import build_joint
from mediffusion_core.models.public_encoders import build_encoder
from mediffusion_core.settings import Settings
from mediffusion_core.training.alignment import alignment_errors
from mediffusion_core.training.joint import joint_optimizer, train_joint
from mediffusion_core.training.joint_batches import JointBatches
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_round import LocalRound
from mediffusion_core.training.loss import joint_losses, total_loss
from mediffusion_core.training.public_features import public_features


@pytest.fixture
def settings(shortest: tuple[str, ...], aligned: tuple[str, ...], tmp_path: Path) -> Settings:
    return compose("config", (*shortest, *aligned, f"data.store={tmp_path / 'store'}"))


def latent_set(settings: Settings, images: int = 24, labelled: int = 6) -> LatentSet:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(images, *settings.latent_shape, generator=generator).half()
    targets = torch.full((images, 3), torch.nan)
    targets[:labelled] = torch.tensor([1.0, 0.0, 0.0])
    directions = torch.randn(images, 8, generator=generator).half()
    return LatentSet(latents, latents[None, :labelled], targets, True, False, None, directions)


def test_the_error_is_that_of_its_equation() -> None:
    pooled, directions = torch.randn(4, 10), torch.randn(4, 6)
    matrix = torch.randn(10, 6, generator=torch.Generator().manual_seed(0)) / 10**0.5
    expected = ((pooled @ matrix - directions) ** 2).sum(dim=1) / 6
    torch.testing.assert_close(alignment_errors(pooled, directions), expected)


def test_the_loss_is_of_clean_rows_and_reaches_the_encoder_alone(settings: Settings) -> None:
    joint, data = build_joint(settings, 3), latent_set(settings)
    wanted, process = settings.training.joint, DiffusionProcess.of(settings.diffusion)
    batch = JointBatches(data, wanted, process, torch.Generator().manual_seed(1)).next()
    assert batch.aligned is not None and not batch.aligned.timesteps.any()
    losses = joint_losses(joint.eval(), batch, wanted)
    encoded = joint.encode(batch.aligned.inputs, batch.aligned.timesteps)
    alone = alignment_errors(joint.pooled(encoded), batch.aligned.directions).mean()
    torch.testing.assert_close(losses["alignment_loss"], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        total_loss(losses, wanted) - total_loss({**losses, "alignment_loss": alone * 0}, wanted),
        wanted.alignment.weight * losses["alignment_loss"],
    )
    losses["alignment_loss"].backward()
    moved = {name for name, value in joint.named_parameters() if value.grad is not None}
    assert any(name.startswith("unet.down_blocks") for name in moved)
    assert not any(name.startswith(("head", "unet.up_blocks")) for name in moved)


@pytest.mark.parametrize("multi_label", [True, False])
def test_soft_targets_are_distilled_into_the_classifier(
    settings: Settings, multi_label: bool
) -> None:
    """Those of images with labels and without; computed here from the logits of the rows."""
    alignment = settings.training.joint.alignment.model_copy(
        update={"weight": 0.0, "distillation_weight": 0.5}
    )
    wanted = settings.training.joint.model_copy(update={"alignment": alignment})
    wanted = wanted.model_copy(update={"classification_weight": 3.0})
    soft = torch.rand(24, 3, generator=torch.Generator().manual_seed(3)).softmax(1).half()
    data = replace(latent_set(settings), soft_targets=soft, multi_label=multi_label)
    joint, process = build_joint(settings, 3).eval(), DiffusionProcess.of(settings.diffusion)
    batch = JointBatches(data, wanted, process, torch.Generator().manual_seed(1)).next()
    assert batch.aligned is not None and batch.aligned.soft_targets is not None
    losses, targets = joint_losses(joint, batch, wanted), batch.aligned.soft_targets
    logits = joint.classify(batch.aligned.inputs)
    if multi_label:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    else:
        expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(losses["distillation_loss"], expected, rtol=1e-3, atol=1e-4)
    without = total_loss({**losses, "distillation_loss": expected * 0}, wanted)
    torch.testing.assert_close(
        total_loss(losses, wanted) - without, 3.0 * 0.5 * losses["distillation_loss"]
    )
    alone = joint_losses(joint, replace(batch, labelled={}), wanted)["distillation_loss"]
    torch.testing.assert_close(alone, losses["distillation_loss"])


def test_each_row_goes_with_the_directions_of_its_own_image(settings: Settings) -> None:
    data = latent_set(settings)
    latents, directions, soft = data.aligned_views(torch.tensor([5, 17]), torch.Generator())
    assert soft is None
    assert torch.equal(latents, data.latents[[5, 17]].float())
    assert data.directions is not None
    assert torch.equal(directions, data.directions[[5, 17]].float())
    probabilities = torch.rand(24, 3).half()
    data = replace(data, soft_targets=probabilities)
    *_, soft = data.aligned_views(torch.tensor([5, 17]), torch.Generator())
    assert soft is not None and torch.equal(soft, probabilities[[5, 17]].float())


def test_training_learns_the_directions_of_images_without_labels(settings: Settings) -> None:
    """At a site without labels, and without the denoiser: only alignment is left."""
    wanted = settings.training.joint.model_copy(
        update={"diffusion_weight": 0.0, "local_epochs": 40.0, "learning_rate": 3e-3}
    )
    torch.manual_seed(0)
    joint, data = build_joint(settings, 3), latent_set(settings, labelled=0)

    def error() -> float:
        with torch.no_grad():
            encoded = joint.eval().encode(
                data.latents.float(), torch.zeros(len(data.latents), dtype=torch.long)
            )
            assert data.directions is not None
            return float(alignment_errors(joint.pooled(encoded), data.directions.float()).mean())

    before = error()
    process = DiffusionProcess.of(settings.diffusion)
    report = train_joint(
        joint, joint_optimizer(joint, wanted), data, wanted, process, LocalRound(1, 1, seed=0)
    )
    assert report.images_seen == len(data.latents) and report.labelled_seen == 0
    assert error() < 0.7 * before


def test_features_are_computed_once_and_kept_beside_the_images(settings: Settings) -> None:
    dataset = open_federated_dataset(settings)
    rows, alignment = dataset.train(1).rows, settings.training.joint.alignment
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    def features() -> torch.Tensor:
        return public_features(dataset, rows, alignment, torch.device("cpu"), tell)

    first = features()
    assert dataset.at_size is not None
    larger = dataset.at_size(64, None)
    assert larger.place != dataset.store.place and larger.images.shape[1:3] == (64, 64)
    expected = build_encoder("image-statistics", 64)(as_batch(larger.images[rows]))
    torch.testing.assert_close(first, expected, rtol=1e-2, atol=1e-2)  # kept in half precision
    assert told[-1] == (len(larger.images), len(larger.images))
    told.clear()
    assert torch.equal(features(), first) and not told
    (path,) = larger.place.glob("image-statistics*.npy")
    path.write_bytes(path.read_bytes()[:-9])
    assert torch.equal(features(), first) and told, "a cut file is computed anew"


def test_phantoms_are_drawn_at_the_encoders_size(settings: Settings) -> None:
    """Not enlarged: a run at that size finds the same images in the same place."""
    at_size = open_federated_dataset(settings).at_size
    assert at_size is not None
    larger = at_size(64, None)
    data = settings.data.model_copy(update={"image_size": 64})
    own = open_federated_dataset(settings.model_copy(update={"data": data})).store
    assert own.place == larger.place
    blurred = larger.images.reshape(-1, 32, 2, 32, 2, 1).mean(axis=(2, 4)).repeat(2, 1).repeat(2, 2)
    assert np.abs(larger.images - blurred).max() > 30


def test_an_image_that_is_missing_at_the_encoders_size_is_one_line(settings: Settings) -> None:
    dataset = open_federated_dataset(settings)
    names = ["other", *list(dataset.store.image_ids)[1:]]
    changed = replace(dataset, store=replace(dataset.store, image_ids=names))
    with pytest.raises(UserError, match=r"^1 images cannot be read"):
        public_features(
            changed,
            np.array([0, 1]),
            settings.training.joint.alignment,
            torch.device("cpu"),
        )


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("privacy=dp", "training.joint.alignment.weight"),
        ("data.scanner_shift=0.5", "data.scanner_shift"),
        ("federation.num_malicious_sites=1", "federation.num_malicious_sites"),
        ("+federation.client_level.noise_multiplier=1.0", "training.joint.alignment.weight"),
    ],
)
def test_settings_that_it_cannot_have_are_refused(
    shortest: tuple[str, ...], aligned: tuple[str, ...], override: str, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        compose("config", (*shortest, *aligned, override))

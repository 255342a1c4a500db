"""Local training: batches, views, and both stages on problems of a few images."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.in_one_call import InOneCall
from helpers.toy import ALPHAS, generator, joint_training, quiet, toy_network, train_toy
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from mediffusion_core.common.device import autocast, resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.augmentation import RANGES, augment, turns_and_flips
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.messaging.moment_names import STEPS
from mediffusion_core.models import Autoencoder, JointUNet, LatentCodec
from mediffusion_core.settings import (
    AutoencoderSettings,
    AutoencoderTraining,
    JointTraining,
    Prediction,
)
from mediffusion_core.training.adam_moments import (
    fresh_moments,
    load_moments,
    read_moments,
    steps_behind,
)
from mediffusion_core.training.autoencoder import autoencoder_optimizer, train_autoencoder
from mediffusion_core.training.batches import Shuffled
from mediffusion_core.training.denoising import Denoising
from mediffusion_core.training.fedprox import Proximal
from mediffusion_core.training.joint import joint_optimizer, train_joint
from mediffusion_core.training.joint_batches import JointBatches
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.latents import encode_images, encode_views
from mediffusion_core.training.local_report import LocalReport, Progress
from mediffusion_core.training.local_round import LocalRound
from mediffusion_core.training.loss import JointBatch, LabelledRows, joint_losses, total_loss
from mediffusion_core.training.schedule import cosine, local_steps

NAN = float("nan")
AUTOENCODER = AutoencoderSettings(
    channels=(8, 8), layers_per_block=1, latent_channels=2, norm_groups=4
)


def images(count: int, side: int = 16) -> ImageSet:
    """Images of one bright square each, left or right; that is also their label."""
    pixels = np.zeros((count, side, side, 1), np.uint8)
    for index in range(count):
        left = 1 if index % 2 else side // 2 + 1
        pixels[index, 4:12, left : left + side // 2 - 2] = 200
    targets = torch.tensor([[float(index % 2)] for index in range(count)]).reshape(count, 1)
    return ImageSet(pixels, np.arange(count), targets)


def latents(count: int = 8, labelled: int = 8, views: int = 2) -> LatentSet:
    """Latents whose first channel's sign is the first finding, its negation the second."""
    sign = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    views_of = torch.randn(views, count, 2, 8, 8, generator=generator()) * 0.3
    views_of[:, :, 0] += sign.reshape(1, -1, 1, 1)
    targets = torch.stack([sign > 0, sign < 0], dim=1).float()
    targets[labelled:] = NAN
    views_of = views_of.half()
    return LatentSet(views_of[0], views_of[:, :labelled], targets, multi_label=True)


def run_joint(
    model: JointUNet,
    data: LatentSet,
    seed: int = 5,
    optimizer: torch.optim.AdamW | None = None,
    on_step: Progress = quiet,
    **changes: object,
) -> LocalReport:
    settings = joint_training(**changes)
    return train_toy(model, data, settings, seed=seed, optimizer=optimizer, on_step=on_step)


def autoencoder_training(**changes: object) -> AutoencoderTraining:
    given: dict[str, object] = {"local_epochs": 2, "batch_size": 4, "learning_rate": 2e-3}
    return AutoencoderTraining(**(given | changes))  # type: ignore[arg-type]


def run_autoencoder(
    model: Autoencoder,
    data: ImageSet,
    seed: int = 5,
    optimizer: torch.optim.AdamW | None = None,
    **changes: object,
) -> LocalReport:
    settings = autoencoder_training(**changes)
    return train_autoencoder(
        model,
        optimizer or autoencoder_optimizer(model, settings),
        data,
        settings,
        LocalRound(1, 2, seed),
    )


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# Batches


@given(st.integers(1, 12), st.lists(st.integers(1, 15), min_size=1, max_size=8), st.integers(0, 99))
def test_every_pass_visits_every_position_once(count: int, sizes: list[int], seed: int) -> None:
    positions = torch.arange(count) * 3 + 1
    batches = Shuffled(positions, generator(seed))
    drawn = [batches.next(size) for size in sizes]
    assert [len(batch) for batch in drawn] == sizes
    together = torch.cat(drawn).tolist()
    for start in range(0, len(together) - count + 1, count):
        assert sorted(together[start : start + count]) == positions.tolist()


def test_passes_differ_in_order_and_agree_by_seed() -> None:
    first, second = (
        Shuffled(torch.arange(50), generator(1)),
        Shuffled(torch.arange(50), generator(1)),
    )
    one, two = first.next(50), first.next(50)
    assert not torch.equal(one, two)
    assert torch.equal(torch.cat([one, two]), torch.cat([second.next(30), second.next(70)]))


# Views


@pytest.mark.parametrize("kind", ["none", *RANGES])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_keep_shape_and_range(kind: str, channels: int) -> None:
    given = torch.rand(20, channels, 16, 16, generator=generator())
    views = augment(given, kind, generator(1))
    assert views.shape == given.shape
    assert views.dtype == torch.float32
    assert float(views.min()) >= 0 and float(views.max()) <= 1
    assert torch.equal(views, augment(given, kind, generator(1)))
    assert torch.equal(views, given) == (kind == "none")
    if kind != "none":
        assert not torch.equal(views, augment(given, kind, generator(2)))


def brightest(image: Tensor) -> tuple[bool, bool]:
    """Whether the brightest part of (1, H, W) lies in the upper and in the left half."""
    flat = nn.functional.avg_pool2d(image[None], 8)[0, 0]
    row, column = divmod(int(flat.argmax()), flat.shape[1])
    return row < flat.shape[0] / 2, column < flat.shape[1] / 2


def corners(kind: str) -> set[tuple[bool, bool]]:
    """Where a square in the upper left corner ends up in 200 views."""
    image = torch.full((1, 32, 32), 0.2)
    image[:, 4:12, 4:12] = 0.9
    views = augment(image.expand(200, 1, 32, 32), kind, generator())
    return {brightest(view) for view in views}


def test_a_radiograph_is_never_mirrored_or_turned() -> None:
    assert corners("radiograph") == {(True, True)}


@pytest.mark.parametrize("kind", ["dermoscopy", "dermoscopy_colour"])
def test_dermoscopy_is_turned_every_way(kind: str) -> None:
    assert turns_and_flips(kind) and len(corners(kind)) == 4


def test_dermoscopy_is_mirrored_and_a_radiograph_is_not() -> None:
    """An L has a handedness that no turn changes."""
    image = torch.zeros(1, 32, 32)
    image[:, 6:26, 10:14] = 1.0
    image[:, 22:26, 10:22] = 1.0

    def turns(of: Tensor) -> Tensor:
        return torch.stack([of.rot90(quarter, (1, 2)) for quarter in range(4)])

    def mirrored(view: Tensor) -> bool:
        nearest = [float((turns(of) - view).square().mean((1, 2, 3)).min()) for of in both]
        return nearest[1] < nearest[0]

    both = (image, image.flip(2))
    for kind, expected in (("radiograph", {False}), ("dermoscopy", {True, False})):
        views = augment(image.expand(100, 1, 32, 32), kind, generator())
        assert {mirrored(view) for view in views} == expected


def test_colours_vary_where_that_is_asked_for_and_only_there() -> None:
    """A plain colour stays plain; only brightness, saturation and hue change."""
    colour = torch.tensor([0.7, 0.5, 0.4]).reshape(1, 3, 1, 1).expand(400, 3, 16, 16)

    def found(kind: str) -> tuple[Tensor, Tensor]:
        views = augment(colour, kind, generator())
        assert (views - views[:, :, :1, :1]).abs().max() < 1e-5
        flat = views[:, :, 0, 0]
        red, green, blue = flat.T
        return (red - green) / (green - blue), flat.amax(dim=1) - flat.amin(dim=1)

    hue, chroma = found("dermoscopy")
    assert (hue - 2.0).abs().max() < 1e-3  # one gain and one offset for all channels
    assert chroma.min() > 0.3 * 0.92 - 1e-4 and chroma.max() < 0.3 * 1.08 + 1e-4
    hue, chroma = found("dermoscopy_colour")
    assert hue.std() > 0.3
    assert chroma.min() < 0.3 * 0.7 and chroma.max() > 0.3 * 1.4
    assert chroma.max() < (0.7 * 1.1 - 0.4 * 0.9) * 1.3 * 1.3 + 1e-4


def test_a_wider_zoom_goes_both_ways() -> None:
    """The area of a bright square in the middle tells the magnification."""
    image = torch.full((300, 3, 32, 32), 0.2)
    image[:, :, 12:20, 12:20] = 0.8
    views = augment(image, "dermoscopy_colour", generator())[:, 0]
    middle = (views.amin(dim=(1, 2), keepdim=True) + views.amax(dim=(1, 2), keepdim=True)) / 2
    sides = (views > middle).sum(dim=(1, 2)).sqrt() / 8
    assert 0.55 < float(sides.min()) < 0.85 and 1.2 < float(sides.max()) < 1.55


def test_each_image_gets_a_view_of_its_own() -> None:
    views = augment(torch.rand(1, 1, 16, 16).expand(8, 1, 16, 16), "radiograph", generator())
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8


# Both stages


def test_a_rate_falls_along_a_cosine_to_a_twentieth() -> None:
    assert cosine(2.0, 0.0) == pytest.approx(2.0)
    assert cosine(2.0, 0.5) == pytest.approx(1.05)
    assert cosine(2.0, 1.0) == cosine(2.0, 1.5) == pytest.approx(0.1)


@given(st.integers(1, 10_000), st.floats(0.001, 10), st.integers(1, 256), st.integers(1, 200))
@example(65, 1.1, 1, 6)
def test_steps_are_passes_over_the_images(
    count: int, epochs: float, batch: int, rounds: int
) -> None:
    """Over all rounds, however few steps one of them has: steps are what a site's weight is."""
    steps = [local_steps(count, epochs, batch, number) for number in range(1, rounds + 1)]
    assert steps[0] >= 1 and min(steps) >= 0
    rounded = 1e-6 * rounds  # 6 * 1.1 * 65 is a little more than 429 in floating point
    assert -rounded <= sum(steps) - rounds * epochs * count / batch < 1 + rounded
    assert max(steps) - min(steps) <= 1


def test_every_purpose_has_its_own_seed() -> None:
    parts = [(), ("a",), ("a", "b"), ("a/b",), ("a", 1), ("a", 2), ("b", 1)]
    seeds = {derive_seed(seed, *part) for seed in (0, 1) for part in parts}
    assert len(seeds) == 2 * len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, "joint", "site-0", 2) == derive_seed(3, "joint", "site-0", 2)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(UserError, match=device):
        resolve_device(device)


def test_precision_is_as_asked_for() -> None:
    cpu = torch.device("cpu")
    a = torch.ones(2, 2)
    with autocast("fp32", cpu):
        assert (a @ a).dtype == torch.float32
    with autocast("bf16", cpu):
        assert (a @ a).dtype == torch.bfloat16


# Autoencoder stage


def test_the_autoencoder_learns_and_counts() -> None:
    torch.manual_seed(0)
    model = Autoencoder(AUTOENCODER, 1)
    data = images(12)
    first = run_autoencoder(model, data)
    later = [run_autoencoder(model, data, seed=seed) for seed in range(6)][-1]
    assert (first.steps, first.images_seen, first.labelled_seen) == (6, 24, 0)
    assert later.means()["loss"] < 0.7 * first.means()["loss"]


def test_the_autoencoder_stage_is_determined_by_its_seed() -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Autoencoder(AUTOENCODER, 1)
        torch.manual_seed(seed + 1000)
        run_autoencoder(model, images(6), seed=seed)
        return copied(model)

    assert same(trained(1), trained(1))
    assert not same(trained(1), trained(2))


def test_an_autoencoder_round_continues_from_the_moments_of_the_last() -> None:
    """Warmed up, its rate is whole at once, and its first step is no longer as long as the rate."""

    def first_change(optimizer: torch.optim.AdamW, model: Autoencoder) -> float:
        before = copied(model)
        run_autoencoder(model, images(4), 7, optimizer, local_epochs=1, warmup_steps=1)
        return sum(float((copied(model)[name] - before[name]).abs().mean()) for name in before)

    torch.manual_seed(0)
    model = Autoencoder(AUTOENCODER, 1)
    settings = autoencoder_training()
    optimizer = autoencoder_optimizer(model, settings)
    run_autoencoder(model, images(12), optimizer=optimizer)
    one, other = deepcopy(model), deepcopy(model)
    fresh, continued = (autoencoder_optimizer(each, settings) for each in (one, other))
    load_moments(continued, other, read_moments(optimizer, model))
    assert steps_behind(continued) == 6
    assert first_change(continued, other) < 0.8 * first_change(fresh, one)
    assert steps_behind(continued) == 7


def test_the_warm_up_follows_the_steps_of_the_trained_parameters() -> None:
    """Where the first parameters stand still, the rate must not warm up anew in every round."""
    model, settings = toy_network(), joint_training()
    optimizer = joint_optimizer(model, settings)
    load_moments(optimizer, model.unet, fresh_moments(model.unet))
    load_moments(optimizer, model.head, fresh_moments(model.head) | {"steps": torch.tensor(5.0)})
    assert steps_behind(optimizer) == 0
    model.unet.requires_grad_(False)
    assert steps_behind(optimizer) == 5


def test_the_proximal_term_adds_the_gradient_that_autograd_finds() -> None:
    torch.manual_seed(0)
    layer, other = nn.Linear(3, 2), nn.Linear(3, 2)
    module = nn.ModuleList([layer, other])
    proximal, sent = Proximal(module, 0.7), copied(layer)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    given = torch.randn(5, 3)

    def loss() -> Tensor:
        return layer(given).square().sum()

    distance = sum((p - sent[name]).square().sum() for name, p in layer.named_parameters())
    expected = torch.autograd.grad(loss() + 0.35 * distance, list(layer.parameters()))
    loss().backward()
    proximal.add_gradients()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(parameter.grad is None for parameter in other.parameters())


def test_a_proximal_term_keeps_the_network_near_the_global_weights() -> None:
    def moved(weight: float) -> float:
        torch.manual_seed(0)
        model = toy_network()
        before = copied(model)
        run_joint(model, latents(), proximal_weight=weight)
        after = copied(model)
        return math.sqrt(sum(float((before[n] - after[n]).square().sum()) for n in before))

    assert moved(100.0) < 0.7 * moved(0.0)


def test_a_site_without_images_leaves_the_autoencoder_alone() -> None:
    model = Autoencoder(AUTOENCODER, 1)
    before = copied(model)
    report = run_autoencoder(model, images(0))
    assert (report.steps, report.images_seen, report.labelled_seen) == (0, 0, 0)
    assert report.means() == {}
    assert same(before, copied(model))


# Latents


def codec(mean: float = 0.0) -> LatentCodec:
    torch.manual_seed(0)
    model = Autoencoder(AUTOENCODER, 1)
    return LatentCodec(model, torch.full((2,), mean), torch.ones(2)).eval()


def encoded(data: ImageSet, views: int, kind: str = "dermoscopy", **more: object) -> Tensor:
    return encode_views(
        codec(),
        data,
        views=views,
        augmentation=kind,
        seed=3,
        **more,  # type: ignore[arg-type]
    )


@torch.no_grad()
def test_the_first_view_is_the_image_as_it_is() -> None:
    data = images(6)
    told: list[int] = []
    views = encoded(data, 3, on_batch=told.append)
    assert views.shape == (3, 6, 2, 8, 8) and views.dtype == torch.float16
    plain = codec().encode(data.take(torch.arange(6)))
    torch.testing.assert_close(views[0].float(), plain, rtol=1e-2, atol=1e-2)
    assert (views[1:] - views[0]).abs().amax((2, 3, 4)).min() > 0.02
    assert told == [6, 6, 6]
    assert torch.equal(views, encoded(data, 3))
    assert torch.equal(encode_images(codec(), data), views[0])


def test_with_a_seed_for_each_view_latents_depend_on_their_image_alone() -> None:
    """An image more makes the last batch one of two images, which changes the last bit of one."""
    few, more = images(129), images(130)
    assert torch.equal(few.take(torch.arange(129)), more.take(torch.arange(129)))

    def views(data: ImageSet) -> Tensor:
        alone = encode_images(codec(), data, apart=True)[None]
        drawn = encode_views(
            codec(),
            data,
            views=2,
            augmentation="dermoscopy_colour",
            seed=lambda view, position: 1000 * view + position,
            plain=False,
        )
        return torch.cat([alone, drawn])[:, :129]

    assert torch.equal(views(few), views(more))


def test_all_views_are_random_where_the_image_as_it_is_is_not_wanted() -> None:
    views, usual = encoded(images(6), 3, plain=False), encoded(images(6), 3)
    assert views.shape == usual.shape
    assert (views - usual[0]).abs().amax((2, 3, 4)).min() > 0.02
    assert torch.equal(encoded(images(2), 4, "none", plain=False), encoded(images(2), 1))


def test_where_marks_are_random_no_view_keeps_those_of_the_image() -> None:
    views, usual = encoded(images(6), 3, "radiograph_marks"), encoded(images(6), 3)
    assert views.shape == usual.shape
    assert (views - usual[0]).abs().amax((2, 3, 4)).min() > 0.02


def test_without_augmentation_one_view_is_enough() -> None:
    assert encoded(images(2), 4, "none").shape == (1, 2, 2, 8, 8)


@pytest.mark.parametrize(("kind", "views"), [("radiograph", 4), ("none", 1)])
def test_no_images_are_no_latents(kind: str, views: int) -> None:
    assert encoded(images(0), 4, kind).shape == (views, 0, 2, 8, 8)


def test_a_labelled_batch_is_one_random_view_of_each_image_with_its_labels() -> None:
    data = latents(views=4)
    data.targets[[0, 3]] = NAN
    data = replace(data, views=data.views[:, data.labelled])
    chosen = torch.tensor([2] * 8 + [5] * 8)
    taken, targets = data.labelled_views(chosen, generator())
    assert taken.dtype == torch.float32
    seen = set()
    for number, latent in zip(chosen.tolist(), taken, strict=True):
        matches = (data.views[:, number].float() == latent).flatten(1).all(dim=1).nonzero()
        assert len(matches) == 1
        seen.add((number, int(matches)))
    assert len(seen) > 4
    # Of the images 1, 2, 4, 5, 6, 7 the third and the last were chosen.
    assert torch.equal(targets, data.targets[[4] * 8 + [7] * 8])


class Shown(InOneCall):
    """Wraps a joint network and notes what it classifies of clean latents."""

    def __init__(self, model: JointUNet) -> None:
        super().__init__()
        self.unet, self.head, self.model = model.unet, model.head, [model]
        self.classified: list[Tensor] = []

    def forward(
        self, given: Tensor, timesteps: Tensor, denoise: slice, classify: slice
    ) -> tuple[Tensor | None, Tensor | None]:
        self.classified.append(given[classify][timesteps[classify] == 0])
        return self.model[0](given, timesteps, denoise, classify)


def test_only_the_classification_loss_uses_the_augmented_views() -> None:
    data = latents(8, 8, views=2)
    marked = replace(data, views=torch.full_like(data.views, 7.0))
    shown = Shown(toy_network())
    run_joint(shown, marked)  # type: ignore[arg-type]
    assert shown.classified and all((clean == 7.0).all() for clean in shown.classified)
    plain = run_joint(toy_network(), data, classification_weight=0.0).means()["diffusion_loss"]
    views = run_joint(toy_network(), marked, classification_weight=0.0).means()["diffusion_loss"]
    assert plain == pytest.approx(views, rel=1e-6)


def test_one_known_finding_makes_an_image_labelled() -> None:
    targets = torch.tensor([[NAN, NAN], [NAN, 0.0], [1.0, 0.0]])
    blank = torch.zeros(3, 1, 1, 1)
    assert LatentSet(blank, blank[None, 1:], targets, True).labelled.tolist() == [1, 2]


# Joint stage


def test_the_joint_stage_is_determined_by_its_seed() -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        model = toy_network()
        torch.manual_seed(seed + 1000)
        run_joint(model, latents(), seed=seed)
        return copied(model)

    assert same(trained(1), trained(1))
    assert not same(trained(1), trained(2))


def test_joint_training_learns_to_denoise_and_to_classify() -> None:
    model, data = toy_network(), latents(16, 8)
    many: dict[str, object] = {"local_epochs": 40, "warmup_steps": 0, "classification_weight": 1.0}
    before = run_joint(toy_network(), data, local_epochs=5).means()
    run_joint(model, data, learning_rate=3e-3, head_learning_rate=3e-3, **many)
    after = run_joint(model, data, local_epochs=5, learning_rate=1e-5, head_learning_rate=1e-5)
    assert after.means()["diffusion_loss"] < 0.7 * before["diffusion_loss"]
    assert after.means()["classification_loss"] < 0.6 * before["classification_loss"]
    model.eval()
    with torch.no_grad():
        logits = model.classify(data.latents.float())
    # Also right for the half whose labels it never saw.
    assert ((logits > 0).float() == latents(16, 16).targets).all()


def test_a_round_counts_its_images() -> None:
    told: list[tuple[int, int, float]] = []
    report = run_joint(
        toy_network(),
        latents(10, 3),
        on_step=lambda *step: told.append(step),
        labelled_batch_size=3,
    )
    assert (report.steps, report.images_seen, report.labelled_seen) == (5, 20, 3)
    assert [step[:2] for step in told] == [(step, 5) for step in range(1, 6)]
    means = report.means()
    assert means["loss"] == pytest.approx(
        means["diffusion_loss"] + 0.1 * means["classification_loss"], rel=1e-4
    )
    assert sum(step[2] for step in told) / 5 == pytest.approx(means["loss"], rel=1e-5)


def test_a_site_without_images_leaves_the_joint_model_alone() -> None:
    model = toy_network()
    before = copied(model)
    report = run_joint(model, latents(0, 0))
    assert (report.steps, report.images_seen, report.labelled_seen) == (0, 0, 0)
    assert same(before, copied(model))


def test_a_site_without_labels_trains_the_denoiser_and_not_the_head() -> None:
    model = toy_network()
    unet, head = copied(model.unet), copied(model.head)
    report = run_joint(model, latents(8, 0))
    assert report.labelled_seen == 0 and report.images_seen == 16
    assert "classification_loss" not in report.means()
    assert same(head, copied(model.head))
    assert not same(unet, copied(model.unet))


def decoder(model: JointUNet) -> dict[str, Tensor]:
    names = ("up_blocks", "conv_norm_out", "conv_out")
    return {name: value for name, value in copied(model.unet).items() if name.startswith(names)}


def test_without_the_diffusion_loss_the_decoder_half_stays_as_it_is() -> None:
    """Neither run nor decayed: AdamW leaves parameters without a gradient alone."""
    model, shown = toy_network(), Shown(toy_network())
    before, unet = decoder(model), copied(model.unet)
    report = run_joint(model, latents(10, 3), diffusion_weight=0.0, weight_decay=0.5)
    assert before and same(before, decoder(model)) and not same(unet, copied(model.unet))
    # As many steps as with it, and nothing is seen but the labelled images.
    assert (report.steps, report.images_seen, report.labelled_seen) == (5, 3, 3)
    assert set(report.sums) == {"loss", "classification_loss"}
    shown.denoise = None  # type: ignore[assignment, method-assign]
    run_joint(shown, latents(10, 3), diffusion_weight=0.0)  # type: ignore[arg-type]
    assert len(shown.classified) == 5


def test_without_the_classification_loss_no_label_is_used_and_the_head_stays() -> None:
    model = toy_network()
    head = copied(model.head)
    report = run_joint(model, latents(8, 8), classification_weight=0.0)
    assert (report.images_seen, report.labelled_seen) == (16, 0)
    assert set(report.sums) == {"loss", "diffusion_loss"}
    assert same(head, copied(model.head))


def test_a_site_without_labels_and_without_the_diffusion_loss_counts_for_nothing() -> None:
    model = toy_network()
    before, optimizer = copied(model), joint_optimizer(model, joint_training())
    report = run_joint(model, latents(8, 0), optimizer=optimizer, diffusion_weight=0.0)
    assert (report.steps, report.images_seen, report.labelled_seen) == (0, 0, 0)
    assert same(before, copied(model))
    assert same(read_moments(optimizer, model), fresh_moments(model))


def test_the_diffusion_loss_is_scaled_by_its_weight() -> None:
    means = run_joint(
        toy_network(), latents(), diffusion_weight=0.25, classification_weight=3.0
    ).means()
    expected = 0.25 * means["diffusion_loss"] + 3.0 * means["classification_loss"]
    assert means["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_sum_of_its_weighted_parts() -> None:
    parts = {"classification_loss": torch.tensor(3.0), "diffusion_loss": torch.tensor(5.0)}
    settings = joint_training(classification_weight=2.0)
    assert float(total_loss(parts, settings)) == pytest.approx(11.0)


@pytest.mark.parametrize("turning", [False, True])
def test_views_are_turned_and_mirrored_where_that_is_as_likely(turning: bool) -> None:
    one = torch.arange(32.0).reshape(1, 1, 2, 4, 4)
    data = LatentSet(one[0], one, torch.ones(1, 1), True, turns_and_flips=turning)
    views, targets = data.labelled_views(torch.zeros(400, dtype=torch.long), generator())
    assert targets.shape == (400, 1)
    seen = {tuple(view.flatten().tolist()) for view in views}
    turned = [one[0, 0].rot90(quarter, (1, 2)) for quarter in range(4)]
    expected = [image.flip(axes) for image in turned for axes in ((), (2,))]
    assert seen == {tuple(e.flatten().tolist()) for e in (expected if turning else expected[:1])}


class Recorder(InOneCall):
    """In place of the network: notes at which timesteps and on what it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(
        self, given: Tensor, timesteps: Tensor, denoise: slice, classify: slice
    ) -> tuple[Tensor, Tensor]:
        self.calls.append((given, timesteps))
        return torch.zeros_like(given[denoise]), torch.zeros(len(given[classify]), 2)


def first_batch(
    given: Tensor, targets: Tensor | None = None, **changes: object
) -> tuple[JointBatch, JointTraining]:
    """Of latents (n, c, h, w), as they are and as their only views, and the settings."""
    targets = torch.full((len(given), 2), NAN) if targets is None else targets
    known = given[~targets.isnan().all(dim=1)]
    settings = joint_training(**changes)
    data = LatentSet(given, known[None], targets, multi_label=True)
    process = DiffusionProcess(ALPHAS, "epsilon")
    return JointBatches(data, settings, process, generator()).next(), settings


def denoised(
    model: nn.Module, given: Tensor, settings: JointTraining, prediction: Prediction = "epsilon"
) -> Tensor:
    timesteps = torch.randint(0, 1000, (len(given),), generator=generator())
    noise = torch.randn(given.shape, generator=generator(1))
    noised = Denoising.of(DiffusionProcess(ALPHAS, prediction), given, timesteps, noise)
    losses = joint_losses(model, JointBatch(noised, {}, True), settings)  # type: ignore[arg-type]
    return losses["diffusion_loss"]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_denoisers_target_is_that_of_the_settings(prediction: Prediction) -> None:
    class Perfect(InOneCall):
        """Knows the clean latents, and from them the noise and its velocity."""

        def predicted(self, noised: Tensor, timesteps: Tensor) -> Tensor:
            alpha_bar = ALPHAS[timesteps].reshape(-1, 1, 1, 1)
            noise = (noised - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
            if prediction != "v_prediction":
                return noise if prediction == "epsilon" else clean
            return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean

        def forward(
            self, noised: Tensor, timesteps: Tensor, denoise: slice, classify: slice
        ) -> tuple[Tensor, None]:
            assert not len(noised[classify])
            return self.predicted(noised, timesteps)[denoise], None

    clean = torch.randn(16, 2, 4, 4, generator=generator())
    loss = denoised(Perfect(), clean, joint_training(batch_size=16), prediction)
    assert float(loss) < 1e-6


@pytest.mark.parametrize(("fraction", "clean"), [(0.0, 40), (0.25, 30), (0.5, 20), (1.0, 0)])
def test_a_share_of_the_labelled_rows_is_noised_up_to_a_bound(fraction: float, clean: int) -> None:
    given = torch.randn(40, 2, 8, 8, generator=generator(1))
    batch, settings = first_batch(
        given,
        torch.ones(40, 2),
        noised_fraction=fraction,
        noised_max_timestep=0.3,
        labelled_batch_size=40,
        diffusion_weight=0.0,
    )
    rows = batch.labelled["classification_loss"]
    same = [any(torch.equal(one, other) for other in given) for one in rows.inputs]
    assert same == [row < clean for row in range(40)]
    assert (rows.timesteps[:clean] == 0).all() and int(rows.timesteps.max()) < 300
    if clean < 40:
        assert int(rows.timesteps.max()) > 150
    losses = joint_losses(Recorder(), batch, settings)  # type: ignore[arg-type]
    assert float(losses["classification_loss"]) == pytest.approx(math.log(2))


def test_sums_are_divided_by_the_fixed_batch_sizes() -> None:
    """Not by the number of rows or labels in a batch: that would couple the samples."""
    given = torch.randn(3, 2, 8, 8, generator=generator(1))
    settings = joint_training(batch_size=12, labelled_batch_size=6)
    rows = LabelledRows(given, torch.zeros(3, dtype=torch.long), torch.ones(3, 2))
    batch = JointBatch(None, {"classification_loss": rows}, multi_label=True)
    loss = joint_losses(Recorder(), batch, settings)["classification_loss"]  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(3 * math.log(2) / 6)
    loss = denoised(Recorder(), given, settings)
    # Against a prediction of zero each sample costs the mean square of standard normal noise.
    assert float(loss) == pytest.approx(3 / 12, rel=0.25)


def test_noise_is_drawn_at_every_level() -> None:
    batch, _ = first_batch(torch.full((600, 1, 8, 8), 5.0), batch_size=600)
    assert batch.denoising is not None
    noised, timesteps = batch.denoising.inputs, batch.denoising.timesteps
    assert int(timesteps.min()) < 20 and int(timesteps.max()) > 980
    spread = (noised - ALPHAS[timesteps].sqrt().reshape(-1, 1, 1, 1) * 5.0).square()
    expected = 1 - ALPHAS[timesteps]
    assert float(spread.mean()) == pytest.approx(float(expected.mean()), rel=0.05)


def rates(settings: JointTraining, number: int, behind: int = 0) -> list[tuple[float, float]]:
    """Learning rates of UNet and head in each step of a round, after steps of earlier rounds."""
    seen: list[tuple[float, float]] = []
    step: Callable[..., object] = torch.optim.AdamW.step
    model = toy_network()
    optimizer = joint_optimizer(model, settings)
    load_moments(optimizer, model, fresh_moments(model) | {STEPS: torch.tensor(float(behind))})

    def noting(self: torch.optim.AdamW, *more: object) -> object:
        unet, head = self.param_groups
        seen.append((unet["lr"], head["lr"]))
        return step(self, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noting)
        train_joint(
            model,
            optimizer,
            latents(),
            settings,
            DiffusionProcess(ALPHAS, "epsilon"),
            LocalRound(number, 2, seed=0),
        )
    return seen


def test_rates_warm_up_once_and_fall_over_the_stage() -> None:
    settings = joint_training(
        local_epochs=3, warmup_steps=2, learning_rate=1e-3, head_learning_rate=1e-4
    )
    first, second = rates(settings, 1), rates(settings, 2, behind=6)
    assert first[0] == pytest.approx((0.5e-3, 0.5e-4))
    assert first[1][0] == pytest.approx(cosine(1e-3, 0.5 / 6))
    assert [a / b for a, b in first] == pytest.approx([10.0] * 6)
    assert second[0][0] == pytest.approx(cosine(1e-3, 0.5))
    assert second[-1][0] < second[0][0] < first[1][0]


# Moments that travel


def adam_rounds(rounds: int, steps: int, travel: bool) -> dict[str, Tensor]:
    """A small network after rounds of steps, its optimizer carried over as moments or as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    draws = generator(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for _ in range(rounds):
        if travel:
            made = read_moments(optimizer, model) if optimizer.state else fresh_moments(model)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
            load_moments(optimizer, model, made)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 3, generator=draws)).square().mean().backward()
            optimizer.step()
    return copied(model) | read_moments(optimizer, model)


def test_one_site_with_travelling_moments_is_an_optimizer_that_was_never_interrupted() -> None:
    assert same(adam_rounds(3, 4, travel=True), adam_rounds(1, 12, travel=False))


def test_moments_that_do_not_fit_are_refused() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"moments of weight are \(1, 4\)"):
        load_moments(optimizer, model, fresh_moments(nn.Linear(4, 1)))
    with pytest.raises(KeyError):
        load_moments(optimizer, model, {STEPS: torch.zeros(())})


def test_a_site_without_labels_hands_the_heads_moments_on() -> None:
    model = toy_network()
    optimizer = joint_optimizer(model, joint_training())
    drawn = {name: torch.rand(m.shape) for name, m in fresh_moments(model.head).items()}
    load_moments(optimizer, model.head, drawn)
    load_moments(optimizer, model.unet, fresh_moments(model.unet))
    run_joint(model, latents(8, 0), optimizer=optimizer)
    assert same(drawn, read_moments(optimizer, model.head))
    assert float(read_moments(optimizer, model.unet)[STEPS]) == 4

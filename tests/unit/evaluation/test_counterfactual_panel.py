"""The panel of counterfactuals and its figures, and models that an evaluator refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.untrained import untrained_model
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.classification import macro_interval
from mediffusion_core.evaluation.counterfactual_panel import (
    choose_panel,
    compare,
    make_counterfactuals,
)
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import Settings

NAN = float("nan")


@given(st.integers(1, 40), st.integers(1, 60), st.booleans(), st.integers(0, 99))
def test_no_image_occurs_twice_and_each_has_the_finding_to_change(
    images: int, count: int, multi_label: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    if multi_label:
        targets = torch.randint(0, 2, (images, 3), generator=generator).float()
    else:
        targets = torch.eye(3)[torch.randint(0, 3, (images,), generator=generator)]
    panel = choose_panel(targets, ("a", "b", "c"), multi_label, count, seed)
    positions = panel.positions.tolist()
    assert len(set(positions)) == len(positions) <= count
    if multi_label:
        assert len(positions) == min(images, count)
    asked = zip(positions, panel.target.index.tolist(), panel.target.present.tolist(), strict=True)
    for position, index, present in asked:
        assert bool(targets[position, index]) != present


def test_without_additions_every_image_has_its_target_finding() -> None:
    targets = torch.tensor([[1.0, 0.0, NAN], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    panel = choose_panel(targets, ("a", "b", "c"), True, 9, seed=0, additions=False)
    assert not panel.target.present.any()
    assert len(panel.positions) == 3  # the last image has nothing
    assert (targets[panel.positions, panel.target.index] == 1).all()


def test_exclusive_classes_are_those_that_are_named_or_the_most_frequent() -> None:
    targets = torch.eye(3)[[0, 0, 0, 1, 1, 2, 2]]
    targets[4] = NAN

    def asked(between: tuple[int, int] | None) -> set[str]:
        return set(choose_panel(targets, ("a", "b", "c"), False, 9, 0, between=between).names)

    assert asked(None) == {"a → c", "c → a"}
    assert asked((1, 0)) == {"a → b", "b → a"}


@pytest.fixture(scope="module")
def model(tiny: tuple[str, ...]) -> TrainedModel:
    return untrained_model(compose("config", tiny), "abcde")


def test_source_and_counterfactual_are_classified_alike(model: TrainedModel) -> None:
    images = torch.rand(4, 1, 32, 32)
    panel = choose_panel(torch.ones(4, 5), tuple("abcde"), True, 4, seed=0)
    guidance = model.settings.evaluation.counterfactual.model_copy(update={"scale": 1e-9})
    made = make_counterfactuals(model, images, panel.target, guidance)
    torch.testing.assert_close(made.before, model.classify(made.sources))
    torch.testing.assert_close(made.after, model.classify(made.images))
    assert torch.equal(made.sources, images)


def test_pixels_that_guidance_does_not_change_are_those_of_the_image(model: TrainedModel) -> None:
    """Although the autoencoder is untrained and blurs them beyond recognition."""
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    latents = model.encode(images)
    detail = model.detail(images, latents)
    assert float(detail.abs().mean()) > 0.1
    made = latents.clone()
    made[2:] += 1.0
    found = model.render(made, detail)
    torch.testing.assert_close(found[:2], images[:2])
    moved = model.decode(made[2:]) - model.decode(latents[2:])
    torch.testing.assert_close(found[2:], (images[2:] + moved).clamp(0, 1))


@given(seed=st.integers(0, 99), share=st.floats(0.01, 0.99))
@hypothesis_settings(max_examples=8)
def test_pixels_outside_a_mask_are_those_of_the_image_bit_for_bit(
    model: TrainedModel, seed: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 1, 32, 32, generator=generator)
    editable = torch.rand(2, 1, 32, 32, generator=generator) < share
    editable[:, :, 16, 16] = True
    panel = choose_panel(torch.ones(2, 5), tuple("abcde"), True, 2, seed=0)
    guidance = model.settings.evaluation.counterfactual.model_copy(
        update={"num_candidates": 1, "num_inference_steps": 2, "relax_mask": False}
    )
    made = make_counterfactuals(model, images, panel.target, guidance, editable)
    assert torch.equal(made.images[~editable], images[~editable])
    assert torch.equal(made.sources, images)
    assert not torch.equal(made.images, images)
    torch.testing.assert_close(made.after, model.classify(made.images))


def test_a_mask_of_all_pixels_changes_nothing_and_a_shortfall_is_said(model: TrainedModel) -> None:
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    panel = choose_panel(torch.ones(2, 5), tuple("abcde"), True, 2, seed=0)
    guidance = model.settings.evaluation.counterfactual
    free = make_counterfactuals(model, images, panel.target, guidance)
    everywhere = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    made = make_counterfactuals(model, images, panel.target, guidance, everywhere)
    assert torch.equal(made.images, free.images) and torch.equal(made.after, free.after)
    assert free.note == ""
    lowest = float(panel.target.confidence(made.after).min())
    assert made.note == (
        "Within the mask the target's probability does not reach 0.95 in 2 of 2 images; "
        f"the lowest is {lowest:.3f}."
    )
    one = slice(0, 1)
    easy = guidance.model_copy(update={"confidence": 0.01})
    for settings, said in ((guidance, "reaches 0."), (easy, "")):
        alone = make_counterfactuals(
            model, images[one], panel.target.rows(torch.tensor([0])), settings, everywhere[one]
        )
        assert said in alone.note and bool(alone.note) == bool(said)


def test_guidance_uses_the_noise_levels_of_the_heads_training(model: TrainedModel) -> None:
    """The head is trained up to 0.6 T; guidance and evaluation use calibrated logits."""
    warm = replace(model, temperature=3.0)
    assert (warm.guided.head_until, warm.guided.temperature) == (599, 3.0)
    latents = torch.randn(2, *model.settings.latent_shape)
    torch.testing.assert_close(
        warm.guided.classify(latents, 0), model.joint.classify(latents) / 3, rtol=1e-4, atol=1e-5
    )
    joint = model.settings.training.joint.model_copy(update={"noised_fraction": 0.0})
    training = model.settings.training.model_copy(update={"joint": joint})
    clean = replace(model, settings=model.settings.model_copy(update={"training": training}))
    assert clean.guided.head_until == 0


def test_features_are_the_inputs_of_the_head(model: TrainedModel) -> None:
    images = torch.rand(5, 1, 32, 32)
    features = model.features(images)
    _, *layers = model.joint.head
    logits = features
    for layer in layers:
        logits = layer(logits)
    torch.testing.assert_close(logits, model.logits(model.encode(images)))


def test_a_temperature_changes_probabilities_but_not_flips(
    model: TrainedModel,
) -> None:
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    panel = choose_panel(torch.ones(4, 5), tuple("abcde"), True, 4, seed=0)
    plain = compare(model, images, images.flip(0), panel.target)
    surer = compare(replace(model, temperature=0.5), images, images.flip(0), panel.target)
    assert torch.equal(surer.eligible, plain.eligible)
    assert torch.equal(surer.flipped, plain.flipped)
    torch.testing.assert_close(surer.before.logit(), 2 * plain.before.logit())


def test_calibration_is_evaluated_with_the_temperature_and_without(model: TrainedModel) -> None:
    """Ranks do not depend on it, and a model at temperature 1 is an uncalibrated one."""
    evaluator = evaluator_of(model.settings, images=40, patients=20, classes=5, multi_label=True)
    logits = evaluator.logits(model)
    plain = evaluator.classification(model, logits)
    scaled = evaluator.classification(replace(model, temperature=4.0), logits)
    figures, others = plain.pop("calibration"), scaled.pop("calibration")
    assert repr(plain) == repr(scaled)  # nan is no equal of nan
    assert figures["temperature"] == 1.0 and others["temperature"] == 4.0
    for name in ("ece", "brier"):
        assert figures[name] == figures[f"{name}_uncalibrated"] == others[f"{name}_uncalibrated"]
        assert others[name] != figures[name]


def test_a_draw_without_a_rare_class_is_no_draw_of_the_macro_area() -> None:
    auc = torch.tensor([0.9, 0.5, NAN])
    draws = torch.tensor([[0.9, 0.4, NAN], [0.8, NAN, NAN], [0.9, 0.6, NAN]])
    assert macro_interval(auc, draws) == pytest.approx((0.6525, 0.7475), abs=1e-6)


def evaluator_of(
    settings: Settings, images: int, patients: int, classes: int, multi_label: bool
) -> Evaluator:
    pixels = np.zeros((images, 32, 32, 1), np.uint8)
    targets = torch.eye(classes)[torch.arange(images) % classes]
    groups = tuple(str(image % patients) for image in range(images))
    names = tuple("abcdefg"[:classes])
    test = ImageSet(pixels, np.arange(images), targets)
    return Evaluator(settings, test, groups, ("site-0",) * images, names, multi_label)


@pytest.mark.parametrize(
    ("images", "patients", "classes", "message"),
    [
        (7, 7, 2, "7 images of 7 patients"),
        (20, 1, 2, "20 images of 1 patients"),
        (20, 20, 1, "the only class is a"),
    ],
)
def test_an_evaluation_that_cannot_succeed_is_refused_at_once(
    tiny: tuple[str, ...], images: int, patients: int, classes: int, message: str
) -> None:
    settings = compose("config", tiny)
    with pytest.raises(UserError, match=message):
        evaluator_of(settings, images, patients, classes, multi_label=False)
    assert evaluator_of(settings, 8, 8, 2, multi_label=False)

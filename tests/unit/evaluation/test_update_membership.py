"""Attacks on an update: a linear model's gradients are known."""

import math

import numpy as np
import pytest
import torch

from mediffusion_core.evaluation.membership_inference import attack
from mediffusion_core.evaluation.update_membership import (
    misalignments,
    moment_gradient,
    weight_movement,
)
from mediffusion_core.training.adam_moments import fresh_moments, read_moments

SIZE = 400


def linear_losses(weights: torch.Tensor, points: torch.Tensor, targets: torch.Tensor):
    """Squared errors of ⟨w, x⟩; the gradient of one is 2 (⟨w, x⟩ - y) x."""
    return [(weights @ x - y).square() for x, y in zip(points, targets, strict=True)]


def test_scores_of_a_linear_model_are_cosines_of_known_gradients() -> None:
    torch.manual_seed(0)
    weights = torch.randn(SIZE, requires_grad=True)
    points, targets = torch.randn(3, SIZE), torch.randn(3)
    movement = torch.randn(SIZE).double()
    found = misalignments([weights], [movement], linear_losses(weights, points, targets))
    gradients = (2 * (points @ weights - targets))[:, None] * points
    expected = -torch.cosine_similarity(gradients.double(), movement[None])
    assert found[:, 0] == pytest.approx(expected.detach().numpy(), abs=1e-6)


def test_members_of_a_step_stand_out_and_strangers_do_not() -> None:
    torch.manual_seed(1)
    weights = torch.randn(SIZE, requires_grad=True)
    points, targets = torch.randn(120, SIZE), torch.randn(120)
    losses = linear_losses(weights, points, targets)
    [gradient] = torch.autograd.grad(torch.stack(losses[:20]).sum(), weights)
    after = {"w": (weights - 1e-3 * gradient).detach()}
    movement = weight_movement({"w": weights.detach()}, after, ["w"])
    assert movement == pytest.approx((1e-3 * gradient).numpy(), abs=1e-5)
    scores = misalignments([weights], [movement], linear_losses(weights, points, targets))[:, 0]
    assert attack(scores[:20], scores[20:], 0).auc > 0.95
    noised = gradient + 50 * gradient.norm() * torch.randn(SIZE) / math.sqrt(SIZE)
    hidden = misalignments([weights], [noised], linear_losses(weights, points, targets))[:, 0]
    assert attack(hidden[:20], hidden[20:], 0).auc < 0.7


@pytest.mark.parametrize("steps", [1, 3])
def test_adams_moments_reveal_the_gradients(steps: int) -> None:
    torch.manual_seed(2)
    model = torch.nn.Linear(5, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    before = fresh_moments(model)
    inputs = torch.randn(7, 5)
    gradients = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        gradients.append(torch.cat([one.grad.flatten() for one in model.parameters()]))
        optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    found = moment_gradient(before, read_moments(optimizer, model), names)
    expected = sum(0.9 ** (steps - 1 - i) * one for i, one in enumerate(gradients))
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-7)


def test_no_movement_and_no_gradient_give_no_score() -> None:
    weights, other = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    losses = [weights.sum(), (0 * weights).sum()]
    found = misalignments([weights, other], [torch.ones(5), torch.zeros(5)], losses)
    assert found[0] == pytest.approx([-3 / math.sqrt(15), 0])
    assert np.array_equal(found[1], [0, 0])
    assert misalignments([weights], [torch.ones(3)], []).shape == (0, 1)

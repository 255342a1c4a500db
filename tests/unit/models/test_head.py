"""Pooling in the classifier's head: where it begins, what it computes, and what trains it."""

import math
from pathlib import Path

import pytest
import torch
from helpers.untrained import untrained_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.models.head import AttentionPooling, ClassifierHead, MeanPooling
from mediffusion_core.run_io.exported_head import ExportedHead
from mediffusion_core.settings import HeadSettings

WIDTHS = (3, 5)


def maps(scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        scale * torch.randn(2, width, side, side + 1, generator=generator)
        for width, side in zip(WIDTHS, (4, 3), strict=True)
    )


@given(st.floats(1e-3, 1e3))
def test_attention_begins_with_the_mean(scale: float) -> None:
    given_maps = maps(scale)
    pooled = AttentionPooling(WIDTHS)(given_maps)
    torch.testing.assert_close(pooled, MeanPooling()(given_maps), rtol=1e-5, atol=1e-6 * scale)


def test_both_heads_begin_with_the_same_logits() -> None:
    heads = []
    for pooling in ("mean", "attention"):
        torch.manual_seed(0)
        settings = HeadSettings.model_validate({"hidden": 8, "pooling": pooling})
        heads.append(ClassifierHead(WIDTHS, 2, settings).eval())
    torch.testing.assert_close(heads[0](maps()), heads[1](maps()))


def test_weights_are_the_softmax_of_the_querys_products() -> None:
    """Two positions and four channels; by hand: scores 0 and log 3, so a quarter and three."""
    pooling = AttentionPooling([4])
    with torch.no_grad():
        pooling.queries[0].copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    one = torch.tensor([[0.0, math.log(3)], [4.0, 8.0], [0.0, 1.0], [1.0, 1.0]])
    pooled = pooling([one.reshape(1, 4, 1, 2)])
    torch.testing.assert_close(pooled, torch.tensor([[0.75 * math.log(3), 7.0, 0.75, 1.0]]))


def test_a_long_query_picks_the_position_that_fits_best() -> None:
    """A mean over many positions would hide this one."""
    pooling = AttentionPooling([2])
    one = torch.zeros(1, 2, 8, 8)
    one[0, :, 5, 6] = torch.tensor([1.0, 9.0])
    with torch.no_grad():
        pooling.queries[0][0] = 100.0
    torch.testing.assert_close(pooling([one]), torch.tensor([[1.0, 9.0]]))


def test_the_loss_reaches_every_query_from_the_start() -> None:
    torch.manual_seed(0)
    head = ClassifierHead(WIDTHS, 2, HeadSettings(hidden=8, dropout=0.0, pooling="attention"))
    head(maps()).square().sum().backward()
    queries = {name: p for name, p in head.named_parameters() if "queries" in name}
    assert len(queries) == len(WIDTHS)
    for name, query in queries.items():
        assert query.grad is not None and query.grad.abs().min() > 0, name


@given(st.floats(0.1, 1e3))
def test_normalised_features_do_not_change_with_the_size_of_all_maps(scale: float) -> None:
    """And each row has mean 0 and variance 1, also as alignment takes it."""
    torch.manual_seed(0)
    settings = HeadSettings(hidden=8, normalised=True)
    head = ClassifierHead(WIDTHS, 2, settings).eval()
    torch.testing.assert_close(head(maps(scale)), head(maps()), rtol=1e-2, atol=1e-3)
    pooled = head.get_submodule("pooling")(maps(scale))
    torch.testing.assert_close(pooled.mean(dim=1), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled.var(dim=1, correction=0), torch.ones(2), rtol=0, atol=0.02)


def test_pooling_by_the_mean_leaves_the_weights_their_names() -> None:
    """Models that were written before there was a choice are opened by them."""
    head = ClassifierHead(WIDTHS, 2, HeadSettings(hidden=8))
    assert set(head.state_dict()) == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_a_saved_model_attends_as_before(tiny: tuple[str, ...], tmp_path: Path) -> None:
    settings = compose("config", (*tiny, "model.head.pooling=attention"))
    model = untrained_model(settings, ("a", "b"))
    with torch.no_grad():
        for query in model.joint.head.pooling.queries:
            query.normal_()
    model.save(tmp_path / "model")
    again = TrainedModel.load(tmp_path / "model", torch.device("cpu"))
    latents = torch.randn(3, *settings.latent_shape)
    assert torch.equal(again.logits(latents), model.logits(latents))
    with torch.no_grad():
        for query in again.joint.head.pooling.queries:
            query.zero_()
    assert not torch.allclose(again.logits(latents), model.logits(latents))


def test_a_model_with_an_untrained_denoiser_draws_nothing(tiny: tuple[str, ...]) -> None:
    settings = compose("config", (*tiny, "training.joint.diffusion_weight=0"))
    model = untrained_model(settings, ("a", "b"))
    latents = torch.randn(2, *settings.latent_shape)
    assert model.logits(latents).shape == (2, 2)
    target = Target(torch.tensor([0, 0]), torch.tensor([True, True]), True)
    with pytest.raises(UserError, match="its denoiser was not trained"):
        model.sample(1, 2, seed=0)
    with pytest.raises(UserError, match="its denoiser was not trained"):
        nothing = torch.zeros(2, settings.data.channels, 32, 32)
        model.explain(latents, target, settings.evaluation.counterfactual, nothing)


@pytest.mark.parametrize("pooling", ["max", ""])
def test_another_pooling_is_refused(pooling: str) -> None:
    with pytest.raises(ValueError, match=r"mean.*attention"):
        HeadSettings.model_validate({"pooling": pooling})


def test_an_exported_head_of_statistics_beside_maps_is_refused() -> None:
    with pytest.raises(UserError, match="open it with the version that wrote it"):
        ExportedHead([4, 3, 5], ["a", "b"], False, hidden=8, moments=True)
    assert ExportedHead([4], ["a", "b"], False, hidden=8, moments=True).layers.reads_latents

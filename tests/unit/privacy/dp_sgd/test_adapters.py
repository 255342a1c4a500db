"""Low-rank adapters: the same network at first, small gradients, merged weights."""

import pytest
import torch
from helpers.toy import generator, joint_training
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mediffusion_core.models import JointUNet
from mediffusion_core.privacy.dp_sgd.adapters import Adapter, adapted
from mediffusion_core.privacy.dp_sgd.gradient_check import check_gradients
from mediffusion_core.privacy.dp_sgd.joint_stage import training_parts
from mediffusion_core.training.joint import joint_optimizer
from unit.privacy.dp_sgd.test_noise import private, toy_network, trained
from unit.privacy.dp_sgd.test_per_sample_clipping import (
    MEMORY,
    joint_batch,
    joint_gradients,
    joint_network,
)

ADAPTED = {"public_model": "elsewhere", "trained": "adapters", "adapter_rank": 2}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_per_sample_gradients_of_adapters_are_those_of_autograd(
    mode: str, memory: torch.memory_format
) -> None:
    network, training = joint_network(memory), joint_training()
    with training_parts(network, joint_optimizer(network, training), training, private(**ADAPTED)):
        for module in network.modules():
            if isinstance(module, Adapter):  # beyond the first step, where half have no gradient
                nn.init.normal_(module.up.weight, std=0.1)
        with joint_gradients(network, mode) as gradients:
            names = set(gradients.parameters)
            assert check_gradients(gradients, joint_batch(mode, 1, memory)) <= 1e-4
    assert any(".attentions." in name for name in names)
    assert any(".conv1.down" in name for name in names)
    assert all(".down.weight" in n or ".up.weight" in n or n.startswith("head.") for n in names)


@given(
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    padding=st.integers(0, 2),
    dilation=st.sampled_from([1, 2]),
)
@settings(max_examples=20)
def test_merged_weights_equal_the_trained_ones(
    kernel: int, stride: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, kernel, stride, padding, dilation)
    adapter = Adapter(layer, 2)
    inputs = torch.randn(3, 5, 9, 9, generator=generator())
    assert torch.equal(adapter(inputs), layer(inputs))
    nn.init.normal_(adapter.up.weight)
    expected = adapter(inputs)
    assert not torch.allclose(expected, layer(inputs), atol=0.1)
    assert torch.allclose(adapter.merged()(inputs), expected, atol=1e-4)


def test_a_linear_layer_is_merged_alike() -> None:
    torch.manual_seed(0)
    adapter = Adapter(nn.Linear(6, 4), 1)
    nn.init.normal_(adapter.up.weight)
    inputs = torch.randn(2, 3, 6)
    expected = adapter(inputs)
    assert torch.allclose(adapter.merged()(inputs), expected, atol=1e-5)


def test_network_and_optimizer_are_their_own_again_also_after_an_error() -> None:
    network, training = joint_network(), joint_training()
    optimizer = joint_optimizer(network, training)
    layers, weights = dict(network.named_modules()), list(network.state_dict())
    groups = len(optimizer.param_groups)
    with pytest.raises(RuntimeError), adapted(network, optimizer, 2, 1e-3):
        assert any(isinstance(part, Adapter) for part in network.modules())
        raise RuntimeError
    assert dict(network.named_modules()) == layers and list(network.state_dict()) == weights
    assert len(optimizer.param_groups) == groups and not optimizer.state


def test_a_private_round_changes_weights_by_matrices_of_low_rank() -> None:
    _, model = trained(private(**ADAPTED), noise=0.5)
    moved = _changes(model)
    inside = {name: change for name, change in moved.items() if not name.startswith("head.")}
    assert inside and any(name.startswith("head.") for name in moved)
    for name, change in inside.items():
        assert name.endswith(".weight")
        assert torch.linalg.matrix_rank(change.flatten(1), atol=1e-5) <= 2


def test_adapters_stand_where_a_loss_reaches() -> None:
    _, model = trained(private(**ADAPTED), noise=0.5, diffusion_weight=0.0)
    moved = _changes(model)
    assert any("down_blocks" in name for name in moved)
    assert not any("up_blocks" in name for name in moved)


def _changes(model: JointUNet) -> dict[str, torch.Tensor]:
    before = toy_network().state_dict()
    return {
        name: value - before[name]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }

"""Per-sample gradients against looped autograd, and the clipping that rests on them."""

from collections.abc import Callable

import pytest
import torch
from helpers.toy import PROCESS, generator, joint_training
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.models import Autoencoder, JointUNet
from mediffusion_core.privacy.dp_sgd.autoencoder_rows import draw_rows, unit_losses
from mediffusion_core.privacy.dp_sgd.ghost_norms import BLOCK, convolution_norms, lengths
from mediffusion_core.privacy.dp_sgd.gradient_check import WrongGradientError, check_gradients
from mediffusion_core.privacy.dp_sgd.joint_rows import UnitLosses, UnitRows
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import TOLERANCE, PerSampleGradients
from mediffusion_core.privacy.unit_streams import UnitStreams
from mediffusion_core.privacy.units import UnitIndex, numbered
from mediffusion_core.settings import (
    AutoencoderSettings,
    AutoencoderTraining,
    HeadSettings,
    UNetSettings,
)
from mediffusion_core.training.latent_set import LatentSet

WEIGHTS = (1.0, 0.1)
"""Of the diffusion and the classification loss."""
ATTENDING = UNetSettings(
    channels=(16, 32),
    attention=(True, True),
    layers_per_block=1,
    attention_head_width=16,
    norm_groups=8,
)


def joint_network(memory: torch.memory_format = torch.contiguous_format) -> JointUNet:
    torch.manual_seed(0)
    network = JointUNet(ATTENDING, HeadSettings(hidden=16, dropout=0.3), (2, 8, 8), 3)
    return network.to(memory_format=memory).train()


def latent_rows(memory: torch.memory_format = torch.contiguous_format) -> UnitRows:
    drawn = torch.randn(6, 2, 8, 8, generator=generator())
    targets = torch.full((6, 3), torch.nan)
    targets[[0, 2, 3]] = torch.eye(3)
    data = LatentSet(
        drawn.half().to(memory_format=memory), drawn[None, [0, 2, 3]].half(), targets, False
    )
    # Images 3 and 4 are of one unit.
    return UnitRows(
        data,
        UnitIndex(torch.tensor([0, 1, 2, 3, 3, 4]), list("abcde")),
        joint_training(noised_fraction=0.5),
        PROCESS,
        UnitStreams("abcde", b"secret"),
    )


def joint_gradients(network: JointUNet, mode: str, guard: bool = True) -> PerSampleGradients:
    losses = UnitLosses(network, WEIGHTS, multi_label=False)
    called = losses.joint if mode == "hooks" else losses.single
    return PerSampleGradients(network, called, mode, guard=guard)


def joint_batch(mode: str, multiplicity: int = 1, memory=torch.contiguous_format):
    rows = latent_rows(memory)
    units = torch.arange(5)
    return rows.joint(1, units, multiplicity, WEIGHTS) if mode == "hooks" else rows.single(1, units)


def autoencoder_gradients(
    mode: str, multiplicity: int, memory: torch.memory_format, guard: bool = True
):
    torch.manual_seed(0)
    shape = AutoencoderSettings(
        channels=(8, 16), layers_per_block=1, latent_channels=2, norm_groups=8, attention=True
    )
    network = Autoencoder(shape, 1).to(memory_format=memory).train()
    training = AutoencoderTraining(local_epochs=1, batch_size=2, learning_rate=1e-3, kl_weight=0.1)
    pixels = torch.randint(0, 256, (5, 16, 16, 1), generator=generator(), dtype=torch.uint8)
    images = ImageSet(pixels.numpy(), torch.arange(5).numpy(), torch.full((5, 1), torch.nan))
    index = UnitIndex(torch.tensor([0, 1, 1, 2, 3]), list("abcd"))
    batch = draw_rows(
        images, index, torch.arange(4), multiplicity, (2, 8, 8), UnitStreams("abcd", b"secret"), 1
    )
    gradients = PerSampleGradients(
        network, lambda rows: unit_losses(network, training, rows), mode, guard=guard
    )
    return gradients, batch


MEMORY = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("mode", "multiplicity"), [("hooks", 1), ("hooks", 3), ("ghost", 1)])
def test_per_sample_gradients_of_the_joint_unet_are_those_of_autograd(
    mode: str, multiplicity: int, memory: torch.memory_format
) -> None:
    with joint_gradients(joint_network(memory), mode) as gradients:
        assert check_gradients(gradients, joint_batch(mode, multiplicity, memory)) <= 1e-4


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("mode", "multiplicity"), [("hooks", 1), ("hooks", 2), ("ghost", 1)])
def test_per_sample_gradients_of_the_autoencoder_are_those_of_autograd(
    mode: str, multiplicity: int, memory: torch.memory_format
) -> None:
    gradients, batch = autoencoder_gradients(mode, multiplicity, memory)
    with gradients:
        assert check_gradients(gradients, batch) <= 1e-4


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_per_sample_gradient_check_catches_the_channels_last_fault_without_the_guard(
    mode: str,
) -> None:
    """Diffusers' attention leaves channels-last activations behind, whatever it was given."""
    message = f"JointUNet in mode {mode} are off by"
    joint = joint_gradients(joint_network(), mode, guard=False)
    with joint, pytest.raises(WrongGradientError, match=message):
        check_gradients(joint, joint_batch(mode), [joint_batch(mode)] * 2)
    gradients, batch = autoencoder_gradients(mode, 1, torch.contiguous_format, guard=False)
    with gradients, pytest.raises(WrongGradientError):
        check_gradients(gradients, batch)


class Plain(nn.Module):
    """One linear layer, for which the gradient of each unit has a closed form."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)[:, 0]


class Rows:
    """Inputs whose gradients under the loss Σ w · x are the inputs themselves."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, units: Tensor) -> "Rows":
        return Rows(self.inputs[units])


def plain_gradients(mode: str, bound: float, clipping: str = "flat") -> PerSampleGradients:
    network = Plain().train()
    return PerSampleGradients(network, lambda rows: network(rows.inputs), mode, clipping, bound)


def clipped(gradients: PerSampleGradients, rows: Rows) -> Tensor:
    return gradients.clipped_sum(rows)["layer.weight"].flatten()


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@settings(max_examples=25)
@given(
    st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), max_size=5),
    st.floats(0.01, 10),
)
def test_one_unit_more_moves_the_sum_by_at_most_the_bound(
    mode: str, rows: list[list[float]], bound: float
) -> None:
    inputs = torch.tensor([*rows, [3.0, -4.0, 12.0]])
    with plain_gradients(mode, bound) as gradients:
        whole = clipped(gradients, Rows(inputs))
        without = clipped(gradients, Rows(inputs[:-1]))
    assert float((whole - without).norm()) <= bound * (1 + 1e-5) + 1e-5
    lengths = inputs.norm(dim=1, keepdim=True).clamp(min=1e-30)
    expected = (inputs * (bound * (1 - TOLERANCE) / lengths).clamp(max=1)).sum(dim=0)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)


class Kinked(Rows):
    """A unit alone has another slope than in its batch."""

    def take(self, units: Tensor) -> Rows:
        return Rows(1.5 * self.inputs[units])


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_per_sample_gradient_check_asks_other_units_before_it_refuses(mode: str) -> None:
    right, off = Rows(torch.eye(3)), Kinked(torch.eye(3))
    with plain_gradients(mode, 1.0) as gradients:
        assert check_gradients(gradients, off, [right, right]) <= 1e-6
        for others in ([], [right, off], [off, right]):
            with pytest.raises(WrongGradientError, match="are off by"):
                check_gradients(gradients, off, others)
        broken = Rows(torch.tensor([[1.0, torch.nan, 0.0]]))
        with pytest.raises(WrongGradientError, match="are off by nan, allowed"):
            check_gradients(gradients, broken, [right, right])


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_a_gradient_that_is_no_number_adds_nothing_and_leaves_the_others(
    mode: str, broken: float
) -> None:
    inputs = torch.tensor([[0.1, 0.0, 0.0], [broken, 0.0, 0.0], [0.0, 0.2, 0.0]])
    with plain_gradients(mode, 1.0) as gradients:
        assert clipped(gradients, Rows(inputs)).tolist() == pytest.approx([0.1, 0.2, 0.0])


def test_clipping_per_layer_bounds_the_whole() -> None:
    network, rows = joint_network(), joint_batch("hooks")
    losses = UnitLosses(network, WEIGHTS, multi_label=False)
    with PerSampleGradients(network, losses.joint, "hooks", "per_layer", 0.01) as gradients:
        one = gradients.clipped_sum(rows.take(torch.tensor([0])))
        share = 0.01 / len(one) ** 0.5
        assert max(float(part.norm()) for part in one.values()) <= share
        assert float(torch.cat([part.flatten() for part in one.values()]).norm()) <= 0.01


def test_a_long_gradient_is_not_taken_for_a_shorter_one() -> None:
    """Summed in single precision, these squares are too few by parts in a thousand."""
    assert float(lengths(torch.full((1, 20_000_000), 0.1))) == pytest.approx(0.1 * 2e7**0.5, 1e-6)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
def test_lengths_are_those_of_whole_and_broken_blocks(size: int) -> None:
    samples = torch.randn(3, size, 1, generator=torch.Generator().manual_seed(size))
    samples[1] = 0.0
    samples[2, -1] = torch.inf
    found = lengths(samples)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, samples.double().flatten(1).norm(dim=1), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("shape", [(3, 8, 1, 1, 0), (3, 16, 2, 1, 1), (5, 16, 1, 2, 2)])
def test_norms_of_a_convolutions_gradients_need_no_gradients(shape: tuple[int, ...]) -> None:
    kernel, side, stride, dilation, padding = shape
    layer = nn.Conv2d(64, 48, kernel, stride, padding, dilation)
    inputs = torch.randn(3, 64, side, side, generator=generator()).relu()
    outputs = layer(inputs)
    behind = torch.randn(outputs.shape, generator=generator(1))
    norms = convolution_norms(layer, [inputs], behind)
    for i in range(3):
        loss = (layer(inputs[i : i + 1]) * behind[i]).sum()
        gradients = torch.autograd.grad(loss, layer.parameters())
        for p, gradient in zip(layer.parameters(), gradients, strict=True):
            assert float(norms[p][i]) == pytest.approx(float(gradient.double().norm()), rel=1e-5)


def test_ghost_clipping_cannot_clip_per_layer() -> None:
    with pytest.raises(UserError, match="cannot clip per layer"):
        plain_gradients("ghost", 1.0, "per_layer")


def test_a_layer_that_mixes_units_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    with pytest.raises(NotImplementedError, match="buffers"):
        PerSampleGradients(network, lambda rows: network(rows.inputs), "hooks")


def test_hooks_and_traces_are_gone_afterwards() -> None:
    network = joint_network()
    before = network.state_dict().keys()
    with joint_gradients(network, "hooks") as gradients:
        gradients.clipped_sum(joint_batch("hooks"))
        assert network.state_dict().keys() == before
    assert not any(hasattr(p, "grad_sample") for p in network.parameters())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in network.modules())


def test_batches_without_a_label_reach_no_classifier() -> None:
    network = joint_network()
    for name, p in network.named_parameters():
        p.requires_grad_(name.startswith("head."))
    with joint_gradients(network, "hooks") as gradients:
        rows = latent_rows().joint(1, torch.tensor([1, 4]), 1, (0.0, 0.1))
        assert not any(bool(part.any()) for part in gradients.clipped_sum(rows).values())


def test_each_unit_has_one_row_and_all_its_images_come_up() -> None:
    unit_of, names = numbered(["b", "a", "b", "c", "b"])
    index, units = UnitIndex(unit_of, names), torch.arange(3)
    assert unit_of.tolist() == [1, 0, 1, 2, 1] and index.counts.tolist() == [1, 3, 1]
    streams = UnitStreams(names, b"secret")
    drawn = torch.stack([index.draw(units, streams.at(units, step)) for step in range(200)])
    assert set(drawn[:, 0].tolist()) == {1} and set(drawn[:, 2].tolist()) == {3}
    shares = torch.bincount(drawn[:, 1], minlength=5).float() / 200
    assert all(abs(float(shares[image]) - 1 / 3) < 0.12 for image in (0, 2, 4))


def test_labelled_units_come_first_and_stay_with_their_rows() -> None:
    rows: Callable[..., object] = latent_rows().joint
    batch = rows(1, torch.arange(5), 2, (1.0, 0.1))
    assert len(batch) == 5 and [len(one.inputs) for one in batch.classified] == [3, 3]
    # Units 1 and 4 have no label; the unit of two images has one.
    taken = batch.take(torch.tensor([1, 4]))
    assert len(taken) == 2 and [len(one.inputs) for one in taken.classified] == [1, 1]
    assert torch.equal(taken.classified[0].targets[0], batch.classified[0].targets[1])
    assert torch.equal(taken.denoised[1].inputs[1], batch.denoised[1].inputs[4])

"""Per-sample gradients against looped autograd, and the clipping that rests on them."""

import gc
from collections.abc import Callable

import pytest
import torch
from helpers.toy import PROCESS, generator, joint_training
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.models import Autoencoder, JointUNet
from mediffusion_core.privacy.dp_sgd.autoencoder_rows import draw_rows, unit_losses
from mediffusion_core.privacy.dp_sgd.gradient_check import WrongGradientError, check_gradients
from mediffusion_core.privacy.dp_sgd.joint_rows import UnitLosses, UnitRows
from mediffusion_core.privacy.dp_sgd.layer_gradients import (
    BLOCK,
    Factored,
    HeldWeight,
    LayerGradients,
    Window,
    as_maps,
    gradients_of,
    lengths,
)
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import (
    TOLERANCE,
    PerSampleGradients,
    _Record,
    whole_norms,
)
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


def joint_gradients(network: JointUNet, mode: str) -> PerSampleGradients:
    losses = UnitLosses(network, WEIGHTS, multi_label=False)
    return PerSampleGradients(network, losses.joint if mode == "hooks" else losses.single)


def joint_batch(mode: str, multiplicity: int = 1, memory=torch.contiguous_format):
    rows = latent_rows(memory)
    units = torch.arange(5)
    return rows.joint(1, units, multiplicity, WEIGHTS) if mode == "hooks" else rows.single(1, units)


def autoencoder_gradients(multiplicity: int, memory: torch.memory_format):
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
    return PerSampleGradients(network, lambda rows: unit_losses(network, training, rows)), batch


MEMORY = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("mode", "multiplicity"), [("hooks", 1), ("hooks", 3), ("ghost", 1)])
def test_per_sample_gradients_of_the_joint_unet_are_those_of_autograd(
    mode: str, multiplicity: int, memory: torch.memory_format
) -> None:
    with joint_gradients(joint_network(memory), mode) as gradients:
        assert check_gradients(gradients, joint_batch(mode, multiplicity, memory)) <= 1e-4


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("multiplicity", [1, 2])
def test_per_sample_gradients_of_the_autoencoder_are_those_of_autograd(
    multiplicity: int, memory: torch.memory_format
) -> None:
    gradients, batch = autoencoder_gradients(multiplicity, memory)
    with gradients:
        assert check_gradients(gradients, batch) <= 1e-4


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_per_sample_gradient_check_catches_the_channels_last_fault_of_opacus(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diffusers' attention leaves channels-last activations behind, whatever it was given."""
    own = Window.of
    monkeypatch.setattr(
        Window, "of", lambda layer: None if isinstance(layer, nn.Conv2d) else own(layer)
    )
    with joint_gradients(joint_network(), mode) as gradients:
        assert check_gradients(gradients, joint_batch(mode)) <= 1e-4
    monkeypatch.setattr(Tensor, "contiguous", lambda given: given)
    joint = joint_gradients(joint_network(), mode)
    with joint, pytest.raises(WrongGradientError, match="JointUNet are off by"):
        check_gradients(joint, joint_batch(mode), [joint_batch(mode)] * 2)
    gradients, batch = autoencoder_gradients(1, torch.contiguous_format)
    with gradients, pytest.raises(WrongGradientError):
        check_gradients(gradients, batch)


class Plain(nn.Module):
    """One linear layer, for which the gradient of each unit has a closed form.

    Every output has the gradient x / √O, so a unit's whole gradient is as long as its input x.
    """

    def __init__(self, width: int = 3, outputs: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(width, outputs, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs.sum(dim=1) / outputs.shape[1] ** 0.5


class Rows:
    """Inputs of a `Plain` network."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, units: Tensor) -> "Rows":
        return Rows(self.inputs[units])


HELD, FACTORED = 1, 16
"""Outputs of a layer with 3 inputs whose gradients are held as they are, or by their factors."""


def plain_gradients(outputs: int, bound: float, clipping: str = "flat") -> PerSampleGradients:
    network = Plain(outputs=outputs).train()
    return PerSampleGradients(network, lambda rows: network(rows.inputs), clipping, bound)


def clipped(gradients: PerSampleGradients, rows: Rows) -> Tensor:
    """The sum over units of f x."""
    found = gradients.clipped_sum(rows)["layer.weight"]
    return found.sum(dim=0) / len(found) ** 0.5


def test_a_gradient_is_held_in_the_form_that_costs_less() -> None:
    kinds = [
        type(gradients_of(layer, positions)[0]).__name__
        for layer, positions in [
            (nn.Linear(3, HELD), 1),
            (nn.Linear(3, FACTORED), 1),
            (nn.Conv2d(32, 32, 3), 256),
            (nn.Conv2d(192, 192, 3), 16),
            (nn.GroupNorm(8, 32), 16),
        ]
    ]
    assert kinds == ["HeldWeight", "Factored", "HeldWeight", "Factored", "Held"]


@pytest.mark.parametrize("outputs", [HELD, FACTORED])
@settings(max_examples=25)
@given(
    st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), max_size=5),
    st.floats(0.01, 10),
)
def test_one_unit_more_moves_the_sum_by_at_most_the_bound(
    outputs: int, rows: list[list[float]], bound: float
) -> None:
    inputs = torch.tensor([*rows, [3.0, -4.0, 12.0]])
    with plain_gradients(outputs, bound) as gradients:
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


@pytest.mark.parametrize("outputs", [HELD, FACTORED])
def test_per_sample_gradient_check_asks_other_units_before_it_refuses(outputs: int) -> None:
    right, off = Rows(torch.eye(3)), Kinked(torch.eye(3))
    with plain_gradients(outputs, 1.0) as gradients:
        assert check_gradients(gradients, off, [right, right]) <= 1e-6
        for others in ([], [right, off], [off, right]):
            with pytest.raises(WrongGradientError, match="are off by"):
                check_gradients(gradients, off, others)
        broken = Rows(torch.tensor([[1.0, torch.nan, 0.0]]))
        with pytest.raises(WrongGradientError, match="are off by nan, allowed"):
            check_gradients(gradients, broken, [right, right])


@pytest.mark.parametrize("outputs", [HELD, FACTORED])
@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_a_gradient_that_is_no_number_adds_nothing_and_leaves_the_others(
    outputs: int, broken: float
) -> None:
    inputs = torch.tensor([[0.1, 0.0, 0.0], [broken, 0.0, 0.0], [0.0, 0.2, 0.0]])
    with plain_gradients(outputs, 1.0) as gradients:
        assert clipped(gradients, Rows(inputs)).tolist() == pytest.approx([0.1, 0.2, 0.0])


def test_clipping_per_layer_bounds_the_whole() -> None:
    network, rows = joint_network(), joint_batch("hooks")
    losses = UnitLosses(network, WEIGHTS, multi_label=False)
    with PerSampleGradients(network, losses.joint, "per_layer", 0.01) as gradients:
        assert check_gradients(gradients, rows) <= 1e-4
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


@pytest.mark.parametrize("kind", [Factored, HeldWeight])
@pytest.mark.parametrize("memory", MEMORY)
@settings(max_examples=25, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    rows=st.lists(st.integers(1, 20), min_size=1, max_size=3),
)
def test_norms_and_sums_of_a_convolutions_gradients_are_those_of_autograd(
    kind: Callable[..., LayerGradients],
    memory: torch.memory_format,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    rows: list[int],
) -> None:
    """Several calls, of maps of different sizes and of fewer units than there are."""
    units, layer = 20, nn.Conv2d(3, 5, kernel, stride, padding, dilation, bias=False)
    found, truth = kind(layer.weight, Window.of(layer)), torch.zeros(units, *layer.weight.shape)
    for call, count in enumerate(rows):
        inputs = torch.randn(count, 3, 7 + call, 8, generator=generator(call))
        behind = torch.randn(layer(inputs).shape, generator=generator(10 + call))
        found.add(inputs.to(memory_format=memory), behind.to(memory_format=memory))
        for unit in range(count):
            loss = (layer(inputs[unit : unit + 1]) * behind[unit]).sum()
            truth[unit] += torch.autograd.grad(loss, layer.weight)[0]
    torch.testing.assert_close(
        found.norms(units)[layer.weight], lengths(truth), rtol=1e-5, atol=1e-5
    )
    kept = torch.arange(units) % 3 > 0
    found.keep(kept)
    factors = torch.rand(int(kept.sum()), generator=generator())
    whole = found.sums({layer.weight: factors})[layer.weight]
    expected = torch.einsum("n,n...->...", factors, truth[kept])
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)


def test_norms_of_linear_layers_keep_what_single_precision_loses() -> None:
    """Positions that nearly cancel: their products are 1e5 times the squared norm."""
    layer = nn.Linear(4, 16, bias=False)
    inputs = torch.full((1, 2, 4), 1.0)
    inputs[0, 1] += 2.0**-8
    behind = torch.tensor([1.0, -1.0])[None, :, None].expand(1, 2, 16)
    found = Factored(layer.weight, Window.of(layer))
    found.add(as_maps(layer, inputs), as_maps(layer, behind))
    assert float(found.norms(1)[layer.weight]) == pytest.approx(8 * 2.0**-8, rel=1e-6)


@pytest.mark.parametrize("exponent", [0, 20, 50, 90])
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_sum_of_terms_that_cancel_stays_within_the_bound(exponent: int, seed: int) -> None:
    """The same input at each position, and gradients at the output whose sum is 0."""
    layer = nn.Linear(64, 64, bias=False)
    inputs = torch.randn(1, 1, 64, generator=generator(seed)).expand(1, 4, 64)
    behind = torch.randn(1, 4, 64, generator=generator(seed + 1)) * 2.0**exponent
    behind = behind - behind.mean(dim=1, keepdim=True)
    found = Factored(layer.weight, Window.of(layer))
    found.add(as_maps(layer, inputs), as_maps(layer, behind))
    norms = found.norms(1)[layer.weight]
    leaves = found.sums({layer.weight: (1 / norms).clamp(max=1).float()})[layer.weight]
    assert float(leaves.double().norm()) <= 1 + TOLERANCE


@pytest.mark.parametrize("outputs", [HELD, FACTORED])
def test_a_gradient_whose_factor_single_precision_cannot_hold_adds_nothing(outputs: int) -> None:
    inputs = torch.tensor([[0.1, 0.0, 0.0], [1e36, 1e36, 0.0], [0.0, 0.2, 0.0]])
    with plain_gradients(outputs, 1.0) as gradients:
        assert clipped(gradients, Rows(inputs)).tolist() == pytest.approx([0.1, 0.2, 0.0])


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_the_check_finds_a_norm_that_is_too_small_for_one_parameter(
    clipping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, rows = joint_network(), joint_batch("hooks")
    losses = UnitLosses(network, WEIGHTS, multi_label=False)
    with PerSampleGradients(network, losses.joint, clipping, 0.01) as gradients:
        right = gradients.norms_by_parameter(rows)
        shares = {p: float((one / whole_norms(right)).max()) for p, one in right.items()}
        small = min((p for p, share in shares.items() if share > 0.01), key=shares.__getitem__)
        wrong = _Record.norms
        monkeypatch.setattr(
            _Record,
            "norms",
            lambda record, units: {
                p: one * (0.1 if p is small else 1.0) for p, one in wrong(record, units).items()
            },
        )
        with pytest.raises(WrongGradientError, match="are off by"):
            check_gradients(gradients, rows)


def test_a_layer_that_mixes_units_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    with pytest.raises(NotImplementedError, match="buffers"):
        PerSampleGradients(network, lambda rows: network(rows.inputs))


def test_hooks_and_traces_are_gone_afterwards() -> None:
    network = joint_network()
    before = network.state_dict().keys()
    with joint_gradients(network, "hooks") as gradients:
        gradients.clipped_sum(joint_batch("hooks"))
        assert network.state_dict().keys() == before
    assert not any(part._forward_hooks for part in network.modules())


def test_a_pass_leaves_no_gradients_in_memory() -> None:
    network = joint_network()
    with joint_gradients(network, "ghost") as gradients:
        gradients.clipped_sum(joint_batch("ghost"))
    gc.collect()
    assert not any(type(one) is _Record for one in gc.get_objects())


def test_a_parameter_of_two_layers_is_refused() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    with pytest.raises(NotImplementedError, match="two layers"):
        PerSampleGradients(nn.Sequential(first, second), lambda rows: rows.inputs)


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

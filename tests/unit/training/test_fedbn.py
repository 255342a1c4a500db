"""Normalisation that stays a site's own: which values, which round's file, and real sites."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from helpers.messages import sent
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from configs.compose import compose
from mediffusion_core.inference.joint_model import build_joint
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.serialization import FORMAT, unpack
from mediffusion_core.models import Autoencoder, LatentCodec
from mediffusion_core.training.adam_moments import fresh_moments
from mediffusion_core.training.fedbn import keep_own, normalisation_names, own_before, with_own
from server.strategy.aggregation import weighted_mean

Weights = Mapping[str, Tensor]


def value(number: int) -> dict[str, Tensor]:
    return {"norm.weight": torch.tensor([float(number)])}


def test_the_names_are_those_of_normalisation_layers_and_their_moments() -> None:
    inner = nn.Sequential(nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2))
    assert normalisation_names(nn.Sequential(nn.Linear(1, 1), inner)) == {
        f"1.1.{name}{end}" for name in ("weight", "bias") for end in ("", ".exp_avg", ".exp_avg_sq")
    }


@given(
    rounds=st.sets(st.integers(1, 12), min_size=1),
    back=st.integers(0, 1),
)
def test_a_continuation_finds_the_newest_round_before_it(
    rounds: set[int], back: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However many rounds a site was not drawn for, and also where the newest must be done anew."""
    folder = tmp_path_factory.mktemp("site")
    order = sorted(rounds)
    for number in order:
        keep_own(folder, number, value(number))
    assert len(list(folder.iterdir())) <= 3
    asked = order[-1] + 1 - back
    earlier = [number for number in order if number < asked]
    assert own_before(folder, asked) == (value(earlier[-1]) if earlier else {})


def test_rounds_of_a_continuation_that_was_given_up_are_forgotten(tmp_path: Path) -> None:
    for number in (4, 5, 6):
        keep_own(tmp_path, number, value(number))
    keep_own(tmp_path, 5, value(50))
    assert own_before(tmp_path, 7) == own_before(tmp_path, 6) == value(50)
    assert own_before(tmp_path, 5) == value(4)


def test_only_the_sites_own_values_replace_the_global_ones() -> None:
    sent_values = {"norm.weight": torch.zeros(1), "conv.weight": torch.zeros(1)}
    assert with_own(sent_values, {}) == sent_values
    own = with_own(sent_values, {**value(3), "norm.weight.exp_avg": torch.ones(1)})
    assert own == {"norm.weight": torch.tensor([3.0]), "conv.weight": torch.zeros(1)}


def numbers(record: ArrayRecord) -> dict[str, Tensor]:
    return unpack(record[FORMAT].data)


def test_sites_go_on_from_their_own_and_from_the_global_rest(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    chosen = ("federation.local_normalisation=true", "training.joint.control_variates=true")
    places = (f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}")
    overrides = (*tiny, *chosen, *places)
    settings = compose("config", overrides)
    torch.manual_seed(0)
    model = build_joint(settings, 5)
    autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
    codec = LatentCodec(autoencoder, torch.zeros(4), torch.ones(4)).state_dict()
    joint: dict[str, Weights] = {
        protocol.UNET: model.unet.state_dict(),
        protocol.HEAD: model.head.state_dict(),
        protocol.UNET_MOMENTS: fresh_moments(model.unet),
        protocol.HEAD_MOMENTS: fresh_moments(model.head),
    }
    names = normalisation_names(model.unet)

    def ask(
        kind: str, arrays: Mapping[str, Weights], site: int = 0, round_number: int = 1
    ) -> RecordDict:
        reply = sent(kind, overrides, settings.fingerprint(), arrays, site, round_number)
        assert protocol.FAILURE not in reply.content
        return reply.content

    def states(content: RecordDict) -> dict[str, Weights]:
        return {name: numbers(content.array_records[name]) for name in protocol.JOINT}

    for site in (0, 1):
        ask(protocol.ENCODE, {protocol.AUTOENCODER: codec}, site)
    first = [states(ask(protocol.TRAIN_JOINT, joint, site)) for site in (0, 1)]
    for name in names & first[0][protocol.UNET].keys():
        assert not torch.equal(*(one[protocol.UNET][name] for one in first)), name
    mean: dict[str, Weights] = {
        name: weighted_mean([one[name] for one in first], [1, 1]) for name in protocol.JOINT
    }

    # A second round on what the server sends is one on the global rest and the first site's own:
    # another global normalisation changes nothing, another global convolution does.
    def second(changed: str = "") -> Weights:
        given = {
            component: {
                name: value + 0.1 if name == changed else value for name, value in state.items()
            }
            for component, state in mean.items()
        }
        return states(ask(protocol.TRAIN_JOINT, given, 0, 2))[protocol.UNET]

    expected = second()
    for name in ("conv_norm_out.weight", "conv_norm_out.bias.exp_avg"):
        assert name in names
        again = second(name)
        assert all(torch.equal(again[other], expected[other]) for other in expected)
    assert not torch.equal(second("conv_in.weight")["conv_in.bias"], expected["conv_in.bias"])

    # Nor does it change what the site's patients say of the model of a round.
    def counts(changed: float, round_number: int) -> Tensor:
        given = {n: v + changed if n in names else v for n, v in mean[protocol.UNET].items()}
        arrays = {protocol.UNET: given, protocol.HEAD: mean[protocol.HEAD]}
        content = ask(protocol.EVALUATE, arrays, 0, round_number)
        return numbers(content.array_records[protocol.COUNTS])["temperature_losses"]

    assert torch.equal(counts(0.5, 1), counts(0.0, 1))
    assert not torch.equal(counts(0.0, 2), counts(0.0, 1))
    assert not torch.equal(counts(0.5, 0), counts(0.0, 0))  # before its first round it has none

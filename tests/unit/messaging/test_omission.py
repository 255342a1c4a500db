"""What did not change, and moments that are zero, arrive without being sent."""

import pytest
import torch
from torch import Tensor

from mediffusion_core.messaging.compression import (
    component_compression,
    compress_change,
    compress_weights,
    decompress_weights,
    layout,
)
from mediffusion_core.messaging.omission import (
    left_out,
    replied,
    unchanged,
    with_zero_moments,
    without,
    zero_moments,
)
from mediffusion_core.messaging.protocol import HEAD, HEAD_MOMENTS
from mediffusion_core.messaging.serialization import pack, unpack
from mediffusion_core.settings import Compression
from server.messages import array_records, size_of

METHODS: tuple[Compression, ...] = ("none", "bf16", "int8")


def numbers(seed: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def weights() -> dict[str, Tensor]:
    return {"a.weight": numbers(0), "b.weight": numbers(1), "b.bias": numbers(2)[0]}


def moments() -> dict[str, Tensor]:
    found = {"steps": torch.tensor(3.0)}
    for name, value in weights().items():
        found[f"{name}.exp_avg"] = value / 10
        found[f"{name}.exp_avg_sq"] = value.square()
    return found


def travelled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return unpack(pack(state)[-1])


@pytest.mark.parametrize("component", [HEAD, HEAD_MOMENTS])
@pytest.mark.parametrize("compression", METHODS)
def test_what_a_site_left_alone_is_the_servers_own(
    component: str, compression: Compression
) -> None:
    method = component_compression(component, compression)
    ours = weights() if component == HEAD else moments()
    before = decompress_weights(travelled(dict(compress_weights(ours, method))), method)
    after = {n: value + 0.5 if n.startswith("b.weight") else value for n, value in before.items()}
    came = travelled(without(compress_change(after, before, method), unchanged(after, before)))
    moved = {name for name in ours if name.startswith("b.weight")}
    assert left_out(came) >= ours.keys() - moved and not left_out(came) & moved
    found = replied(ours, came, layout(ours, method), method)
    for name in ours:
        assert torch.equal(found[name], ours[name]) == (name not in moved)
        assert found[name].dtype == ours[name].dtype and found[name].shape == ours[name].shape


@pytest.mark.parametrize("compression", METHODS)
def test_zero_moments_are_known_from_the_weights(compression: Compression) -> None:
    method = component_compression(HEAD_MOMENTS, compression)
    ours = moments()
    for ending in ("exp_avg", "exp_avg_sq"):
        ours[f"a.weight.{ending}"] = torch.zeros(4, 6)
    came = travelled(without(compress_weights(ours, method), zero_moments(ours)))
    kept = {name: value for name, value in came.items() if name not in left_out(came)}
    found = with_zero_moments(decompress_weights(kept, method), weights())
    assert found.keys() == ours.keys()
    assert found["a.weight.exp_avg"].shape == (4, 6) and not found["a.weight.exp_avg"].any()
    assert bool(found["b.bias.exp_avg_sq"].any()) and float(found["steps"]) == 3


def test_moments_travel_at_half_their_width_and_zeros_not_at_all() -> None:
    wide = {"a.weight": torch.ones(100, 100), "b.bias": torch.ones(3)}
    state = {f"a.weight.{ending}": torch.ones(100, 100) for ending in ("exp_avg", "exp_avg_sq")}
    sizes = [
        size_of(array_records({component: content}))
        for component, content in (
            (HEAD, wide),
            (HEAD_MOMENTS, state),
            (HEAD_MOMENTS, {name: 0 * value for name, value in state.items()}),
        )
    ]
    assert sizes[0] == pytest.approx(40_000, rel=0.02)
    assert sizes[1] == pytest.approx(40_000, rel=0.02)
    assert sizes[2] < 400

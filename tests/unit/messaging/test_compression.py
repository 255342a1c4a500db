"""Weights in fewer bytes: how far off they are, and what rounding must not do."""

import shutil
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mediffusion_core.messaging.compression import (
    apply_change,
    compress_change,
    compress_weights,
    decompress_weights,
    message_compression,
)
from mediffusion_core.messaging.protocol import ENCODE, EVALUATE, TRAIN_AUTOENCODER, TRAIN_JOINT
from mediffusion_core.messaging.serialization import pack, unpack
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.settings import Compression
from simulations.engine.in_process import run_in_process

METHODS: tuple[Compression, ...] = ("bf16", "int8")
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3))


def component(
    shape: tuple[int, ...], seed: int, decades: float, size: float = 1.0
) -> dict[str, Tensor]:
    """Weights, and moments whose numbers span decades."""
    random = torch.Generator().manual_seed(seed)

    def numbers() -> Tensor:
        spread = 10 ** (decades * torch.rand(shape, generator=random) - decades)
        return size * torch.randn(shape, generator=random) * spread

    return {
        "conv.weight": numbers(),
        "conv.bias": numbers()[0].flatten(),
        "conv.weight.exp_avg": numbers(),
        "conv.weight.exp_avg_sq": numbers().square(),
        "steps": torch.tensor(12.5),
    }


def travelled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return unpack(pack(state)[-1])


def bound(name: str, exact: Tensor, method: Compression) -> Tensor:
    """By how much a number may be off."""
    if method == "bf16":
        return exact.abs() * 2.0**-8
    largest = exact.abs().flatten(1).amax(dim=1).reshape(-1, *[1] * (exact.dim() - 1))
    if name.endswith("weight"):
        return largest / 254 * (1 + 1e-5)
    return exact.abs() * 2.0**-4 + largest / 448 * 2.0**-9


@settings(max_examples=60)
@given(SHAPES, st.integers(0, 10**6), st.floats(0, 4), st.sampled_from(METHODS))
def test_received_values_are_near_the_sent_ones(
    shape: tuple[int, ...], seed: int, decades: float, method: Compression
) -> None:
    state = component(shape, seed, decades)
    got = decompress_weights(travelled(dict(compress_weights(state, method))), method)
    assert got.keys() == state.keys()
    for name in ("conv.weight", "conv.weight.exp_avg"):
        assert got[name].shape == shape and got[name].dtype == torch.float32
        assert bool((got[name] - state[name]).abs().le(bound(name, state[name], method)).all())
    roots = got["conv.weight.exp_avg_sq"].sqrt(), state["conv.weight.exp_avg_sq"].sqrt()
    allowed = bound("conv.weight.exp_avg_sq", roots[1], method) + 1e-6 * roots[1]
    assert bool((roots[0] - roots[1]).abs().le(allowed).all())
    assert torch.equal(got["conv.bias"], state["conv.bias"])
    assert float(got["steps"]) == 12.5


@settings(max_examples=60)
@given(SHAPES, st.integers(0, 10**6), st.sampled_from(METHODS))
def test_the_servers_weights_move_by_the_change_and_are_not_rounded(
    shape: tuple[int, ...], seed: int, method: Compression
) -> None:
    state = component(shape, seed, 2.0)
    before = decompress_weights(travelled(dict(compress_weights(state, method))), method)
    step = component(shape, seed + 1, 2.0, size=1e-3)["conv.weight"]
    after = {**before, "conv.weight": before["conv.weight"] + step}
    got = apply_change(state, travelled(dict(compress_change(after, before, method))), method)
    made = after["conv.weight"] - before["conv.weight"]
    allowed = bound("conv.weight", made, method) + 1e-6 * state["conv.weight"].abs()
    assert bool((got["conv.weight"] - state["conv.weight"] - made).abs().le(allowed).all())
    # Unchanged values stay exactly equal, although the site received them rounded.
    assert torch.equal(got["conv.weight.exp_avg"], state["conv.weight.exp_avg"])
    torch.testing.assert_close(
        got["conv.weight.exp_avg_sq"], state["conv.weight.exp_avg_sq"], rtol=1e-6, atol=1e-37
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_second_moment_is_never_zero_at_a_site_nor_negative_at_the_server(
    method: Compression,
) -> None:
    tiny = {"a.exp_avg_sq": torch.tensor([[1.0, 1e-30]])}
    got = decompress_weights(compress_weights(tiny, method), method)["a.exp_avg_sq"]
    assert bool((got > 0).all())
    less = {"a.exp_avg_sq": torch.zeros(1, 2)}
    back = apply_change(tiny, compress_change(less, {"a.exp_avg_sq": got}, method), method)[
        "a.exp_avg_sq"
    ]
    assert bool((back >= 0).all())


def test_without_compression_nothing_is_touched() -> None:
    state = component((2, 3), 0, 2.0)
    assert compress_weights(state, "none") is decompress_weights(state, "none") is state
    assert compress_change(state, {}, "none") is apply_change({}, state, "none") is state


@pytest.mark.parametrize("kind", [ENCODE, EVALUATE])
def test_only_training_is_compressed(kind: str) -> None:
    assert message_compression(kind, "int8") == "none"
    assert (
        message_compression(TRAIN_JOINT, "int8")
        == message_compression(TRAIN_AUTOENCODER, "int8")
        == "int8"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["w", "w.exp_avg", "w.exp_avg_sq"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_number_that_is_none_does_not_become_one(
    method: Compression, name: str, broken: float
) -> None:
    before = {name: torch.ones(2, 2)}
    after = {name: torch.tensor([[1.0, broken], [2.0, 1.0]])}
    got = apply_change(before, compress_change(after, before, method), method)[name]
    assert not bool(got[0].isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_a_change_of_other_weights_is_refused(method: Compression) -> None:
    ours = {"w": torch.zeros(2, 3)}
    for theirs in ({"v": torch.zeros(2, 3)}, {"w": torch.zeros(3, 3)}, {}):
        with pytest.raises(ValueError, match="other weights"):
            apply_change(ours, compress_change(theirs, theirs, method), method)
    with pytest.raises(ValueError, match="other scales than one for each row"):
        apply_change(
            ours, {"w": torch.zeros(2, 3, dtype=torch.int8), "w:scale": torch.ones(3)}, "int8"
        )


@pytest.mark.parametrize(("method", "share"), [("bf16", 0.505), ("int8", 0.26)])
def test_bytes_are_half_and_a_quarter(method: Compression, share: float) -> None:
    state = component((256, 64, 9), 0, 2.0)
    whole = len(pack(state)[-1])
    assert len(pack(compress_weights(state, method))[-1]) < share * whole
    assert len(
        pack(
            compress_change(
                state, decompress_weights(compress_weights(state, method), method), method
            )
        )[-1]
    ) < (share * whole)


def test_a_continued_run_equals_an_uninterrupted_one(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path
) -> None:
    short = ("federation.autoencoder_rounds=1", "federation.num_rounds=2", "evaluation.every=2")
    places = (f"run.folder='{tmp_path / 'run'}'", f"data.store='{tmp_path / 'store'}'")
    overrides = (*tiny, *few, *short, *places, "federation.compression=int8")
    folder = run_in_process("config", overrides)
    newest = list_checkpoints(folder.checkpoints)[-1]
    whole = {name: newest.load(name) for name in newest.components()}
    shutil.rmtree(newest.folder)
    run_in_process("config", overrides)
    again = list_checkpoints(folder.checkpoints)[-1]
    assert again.number == newest.number and again.components() == list(whole)
    for name, state in whole.items():
        got = again.load(name)
        assert all(torch.equal(got[key], value) for key, value in state.items())


FOREIGN = {
    "scales of a bias": {"conv.bias:scale": torch.ones(3)},
    "a scale of a number": {"steps:scale": torch.tensor(1.0)},
    "scales of another type": {"conv.weight:scale": torch.ones(3, dtype=torch.int64)},
    "too few scales": {"conv.weight:scale": torch.ones(2)},
    "codes without scales": {"conv.bias": torch.ones(3, dtype=torch.int8)},
    "floating codes without scales": {"conv.bias": torch.ones(3).to(torch.float8_e4m3fn)},
    "a second moment of truth values": {"conv.weight.exp_avg_sq": torch.ones(3, 4) > 0},
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_tensors_of_another_form_are_refused(foreign: dict[str, Tensor]) -> None:
    before = component((3, 4, 1), 0, 1.0)
    travelling = {**compress_change(before, before, "int8"), **foreign}
    for decode in (
        lambda: decompress_weights(travelling, "int8"),
        lambda: apply_change(before, travelling, "int8"),
    ):
        with pytest.raises(ValueError, match=r"scales|is of type"):
            decode()


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8, torch.bool, torch.complex64])
def test_changes_of_another_type_are_refused(dtype: torch.dtype) -> None:
    before = component((3, 4, 1), 0, 1.0)
    travelling = {**compress_change(before, before, "int8"), "conv.bias": torch.ones(3).to(dtype)}
    with pytest.raises(ValueError, match="other weights"):
        apply_change(before, travelling, "int8")

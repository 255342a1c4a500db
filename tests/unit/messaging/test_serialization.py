"""Components as they travel."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from mediffusion_core.messaging.serialization import pack, unpack

SHAPES = st.lists(st.integers(0, 3), max_size=4)
TYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
STATES = st.dictionaries(st.text("abc._", min_size=1), st.tuples(SHAPES, TYPES), max_size=5)


@given(STATES)
def test_unpacked_values_equal_the_packed_ones(
    shapes: dict[str, tuple[list[int], torch.dtype]],
) -> None:
    state = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in shapes.items()}
    got = unpack(pack(state)[-1])
    assert got.keys() == state.keys()
    for name, tensor in state.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(got[name], tensor)


def test_memory_format_and_gradients_do_not_matter() -> None:
    weight = torch.randn(4, 3, 2, 2, requires_grad=True).to(memory_format=torch.channels_last)
    assert torch.equal(unpack(pack({"weight": weight})[-1])["weight"], weight)


def test_unpacked_values_share_no_memory() -> None:
    block = pack({"a": torch.zeros(3)})[-1]
    first = unpack(block)
    first["a"].add_(1)
    assert torch.equal(unpack(block)["a"], torch.zeros(3))


def test_the_fields_are_those_of_an_array() -> None:
    dtype, shape, _, block = pack({"a": torch.zeros(3)})
    assert (dtype, shape) == ("uint8", (len(block),))


@pytest.mark.parametrize("block", [b"", b"no tensors", pack({"a": torch.zeros(3)})[-1][:-1]])
def test_other_bytes_are_refused(block: bytes) -> None:
    with pytest.raises(ValueError, match="no block of tensors"):
        unpack(block)

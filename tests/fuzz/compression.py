"""Compressed payloads: blocks of any tensors, decoded as a site and as the server decode them.

A payload in the layout that the reply contract demands must be accepted, and give weights of the
server's names, shapes and types.
"""

from pathlib import Path

import hypothesis.strategies as st
import torch
from torch import Tensor

from fuzz.harness import Target
from fuzz.mutations import nearly
from mediffusion_core.messaging.compression import (
    SCALE,
    apply_change,
    compress_change,
    compress_weights,
    decompress_weights,
    layout,
)
from mediffusion_core.messaging.moment_names import MEAN, SQUARE, STEPS
from mediffusion_core.messaging.serialization import pack, unpack
from mediffusion_core.settings import Compression

METHODS: tuple[Compression, ...] = ("none", "bf16", "int8")
TYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8,
    torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
)  # fmt: skip
NAMES = ("conv.weight", "conv.bias", "conv.weight" + MEAN, "conv.weight" + SQUARE, STEPS, "", "x")
ENDINGS = ("", SCALE, SCALE + SCALE)

Given = tuple[str, int, list[int], bytes]
"""Name, type, shape and bytes, which are repeated or cut to fit."""


def target(root: Path) -> Target:
    """Decodes a block, whole or made of tensors, by one method."""
    before = _component()

    def run(case: tuple[int, bytes | None, list[Given]]) -> None:
        which, block, tensors = case
        method = METHODS[which]
        if block is None:
            replaced = {name: _tensor(*rest) for name, *rest in tensors}
            block = pack({**compress_change(before, before, method), **replaced})[-1]
        travelling = unpack(block)
        decompress_weights(travelling, method)
        found = {name: (value.shape, value.dtype) for name, value in travelling.items()}
        agreed = found == layout(before, method)
        try:
            after = apply_change(before, travelling, method)
        except ValueError:
            assert not agreed
            raise
        if agreed:
            assert {n: (v.shape, v.dtype) for n, v in after.items()} == {
                n: (v.shape, v.dtype) for n, v in before.items()
            }

    seeds = [pack(compress_weights(before, method))[-1] for method in METHODS]
    seeds += [pack(compress_change(before, before, method))[-1] for method in METHODS]
    name = st.builds(str.__add__, st.sampled_from(NAMES), st.sampled_from(ENDINGS))
    shape = st.one_of(
        st.sampled_from([[3, 4], [3], [4], []]), st.lists(st.integers(0, 5), max_size=4)
    )
    tensor = st.tuples(name, st.integers(0, len(TYPES) - 1), shape, st.binary(max_size=8))
    blocks = st.tuples(nearly(seeds), st.just([]))
    made = st.tuples(st.none(), st.lists(tensor, max_size=4))
    method = st.integers(0, len(METHODS) - 1)
    return Target(
        root=root,
        cases=st.tuples(method, st.one_of(blocks, made)).map(lambda one: (one[0], *one[1])),
        run=run,
        refused=(ValueError,),
        seeds=[bytes([which]) + seed for which in range(len(METHODS)) for seed in seeds],
        of_bytes=lambda given: (given[0] % len(METHODS) if given else 0, given[1:], []),
    )


def _component() -> dict[str, Tensor]:
    weight = torch.arange(12.0).reshape(3, 4) / 10
    return {
        "conv.weight": weight,
        "conv.bias": torch.ones(3),
        "conv.weight" + MEAN: weight / 7,
        "conv.weight" + SQUARE: weight.square(),
        STEPS: torch.tensor(3.0),
    }


def _tensor(which: int, shape: list[int], content: bytes) -> Tensor:
    dtype = TYPES[which]
    size = torch.Size(shape).numel() * dtype.itemsize
    filled = bytearray((content * (size + 1))[:size] or bytes(size))
    if dtype == torch.bool:
        filled = bytearray(byte % 2 for byte in filled)
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(filled, dtype=dtype).reshape(shape)

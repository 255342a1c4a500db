"""Serialization of a component: all tensors in one block of bytes, in safetensors' format.

Transports handle arrays one by one. A joint round has a thousand arrays, most of a few hundred
bytes, and the cost per array exceeds the cost of its bytes. One block avoids it.
"""

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = "safetensors"

ArrayFields = tuple[str, tuple[int, ...], str, bytes]
"""Type, shape, serialization and bytes: the fields of a transport's array, in Flower's order."""


def pack(state: Mapping[str, Tensor]) -> ArrayFields:
    """Packs tensors of any device and memory format into one array of bytes.

    Raises:
        RuntimeError: if two of the tensors share memory.
    """
    block = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    return "uint8", (len(block),), FORMAT, block


def unpack(block: bytes) -> dict[str, Tensor]:
    """Unpacks the tensors of `pack`, on the CPU, each with its own memory.

    Raises:
        ValueError: if the bytes are no block of `pack`.
    """
    try:
        return load(block)
    # A header may name types and shapes that PyTorch does not have.
    except (SafetensorError, LookupError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"no block of tensors: {error}") from error
    except AssertionError as error:
        raise ValueError("no block of tensors") from error

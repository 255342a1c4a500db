"""A component as it travels: all its tensors in one block of bytes, in safetensors' format.

Transports handle arrays one by one. A joint round carries a thousand of them, most a few hundred
bytes long, and cost more to send one by one than their bytes do; one block costs what it holds.
"""

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = "safetensors"

ArrayFields = tuple[str, tuple[int, ...], str, bytes]
"""Type, shape, serialization and bytes: the fields of a transport's array, in Flower's order."""


def pack(state: Mapping[str, Tensor]) -> ArrayFields:
    """Tensors by name, of any device and memory format, as one array of bytes.

    Raises:
        RuntimeError: if two of the tensors share memory.
    """
    block = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    return "uint8", (len(block),), FORMAT, block


def unpack(block: bytes) -> dict[str, Tensor]:
    """The tensors that `pack` wrote, on the CPU, each with memory of its own.

    Raises:
        ValueError: if the bytes are no such block.
    """
    try:
        return load(block)
    # The types and shapes that a header may name are more than PyTorch has.
    except (SafetensorError, LookupError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"no block of tensors: {error}") from error
    except AssertionError as error:
        raise ValueError("no block of tensors") from error

"""Many strings as one array of bytes: a million names take a file, not a million objects."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Names(Sequence[str]):
    """Strings in a NumPy array of UTF-8 bytes, perhaps a memory map, decoded one at a time."""

    def __init__(self, encoded: NDArray[np.bytes_]) -> None:
        """Takes (N,) bytes of one width; no name may end in a NUL, which NumPy pads with."""
        self.encoded = encoded

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Encodes names."""
        encoded = [name.encode() for name in names]
        width = max(map(len, encoded), default=1)
        return cls(np.array(encoded, dtype=f"S{max(width, 1)}"))

    def __len__(self) -> int:
        """How many."""
        return len(self.encoded)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        """One name, or a run of them."""
        if isinstance(index, slice):
            return Names(self.encoded[index])
        return bytes(self.encoded[index]).decode()

    def __iter__(self) -> Iterator[str]:
        """All names, in order."""
        return (bytes(name).decode() for name in self.encoded)

    def __eq__(self, other: object) -> bool:
        """Whether the other sequence holds the same names in the same order."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """The first names."""
        shown = ", ".join(map(repr, self[:3])) + (", ..." if len(self) > 3 else "")
        return f"Names({len(self)}: {shown})"

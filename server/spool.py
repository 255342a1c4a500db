"""The replies of one round on disk, for rules that need all of them.

In memory they would need the size of a reply for each site. Here they are read again site by site,
or in parts: the same values of all sites, as many as a fixed budget of memory allows.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]

PART_BYTES = 1 << 22
"""Of the values of all sites that are in memory at once."""


class Spool:
    """Tensors of several sites in files of one folder, which `remove` deletes.

    A component has the same names, shapes and types at every site.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the folder; deletes the files of a round that was killed."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._numbers: dict[str, int] = {}
        self._layouts: dict[str, dict[str, Tensor]] = {}
        """By component, a tensor without memory for each name, in the order of the files."""

    def write(self, site: str, component: str, state: StateDict) -> None:
        """Writes a site's component."""
        # A site's name need not be one that a file may have.
        self._numbers.setdefault(site, len(self._numbers))
        layout = self._layouts.setdefault(
            component, {name: value.to("meta") for name, value in state.items()}
        )
        with self._path(site, component).open("wb") as file:
            for name in layout:
                file.write(_bytes(state[name].contiguous()))

    def read(self, site: str, component: str) -> dict[str, Tensor]:
        """A site's component as it was written."""
        state = {}
        with self._path(site, component).open("rb") as file:
            for name, like in self._layouts[component].items():
                state[name] = torch.empty_like(like, device="cpu")
                _fill(file, state[name])
        return state

    def parts(self, component: str, sites: Sequence[str]) -> Iterator[tuple[str, slice, Tensor]]:
        """All values of a component of several sites, part by part.

        Yields:
            A tensor's name, where in the flattened tensor the part lies, and the part's values
            (n, values), one row a site.
        """
        with ExitStack() as opened:
            files = [opened.enter_context(self._path(site, component).open("rb")) for site in sites]
            for name, like in self._layouts[component].items():
                together = max(1, PART_BYTES // (len(sites) * like.itemsize))
                for start in range(0, like.numel(), together):
                    stop = min(start + together, like.numel())
                    stack = torch.empty(len(sites), stop - start, dtype=like.dtype)
                    for row, file in zip(stack, files, strict=True):
                        _fill(file, row)
                    yield name, slice(start, stop), stack

    def remove(self) -> None:
        """Deletes the files."""
        shutil.rmtree(self._folder)

    def _path(self, site: str, component: str) -> Path:
        return self._folder / f"{self._numbers[site]}-{component}"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _fill(file: BinaryIO, tensor: Tensor) -> None:
    """Reads a contiguous tensor from where the file stands."""
    if file.readinto(_bytes(tensor)) != tensor.nbytes:  # type: ignore[attr-defined]
        raise OSError(f"{file.name} is shorter than it was written")

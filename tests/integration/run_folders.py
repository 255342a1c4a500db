"""Comparing run folders: checkpoints bit by bit, records without times."""

from typing import Any

import torch

from mediffusion_core.common.component_folder import ComponentFolder
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.run_io.run_folder import RunFolder

TIMES = {"time", "seconds", "seconds_per_image", "contacts"}
STAGES = ("autoencoder", "joint")
"""The stages whose rounds train."""


def untimed(value: Any) -> Any:
    """The same without what a clock says."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMES}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def checkpoint(folder: RunFolder, ending: str) -> bool:
    return any(path.folder.name.endswith(ending) for path in list_checkpoints(folder.checkpoints))


def assert_same_end(folder: RunFolder, expected_folder: RunFolder) -> None:
    """The newest checkpoints of two runs hold the same arrays, bit by bit."""
    expected = list_checkpoints(expected_folder.checkpoints)[-1]
    found = list_checkpoints(folder.checkpoints)[-1]
    assert found.folder.name == expected.folder.name
    assert_same_arrays(found, expected)


def assert_same_arrays(found: ComponentFolder, expected: ComponentFolder) -> None:
    assert found.components() == expected.components() != []
    for component in expected.components():
        tensors = expected.load(component)
        assert found.load(component).keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found.load(component)[name], tensor), (component, name)

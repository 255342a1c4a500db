"""Images are built once; without an engine, or without being asked for, all is skipped."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from docker_engine import Federation, build_images, has_engine, signed
from docker_kits import new_kits

from deployment.provision import Kits
from mediffusion_core.common.component_folder import ComponentFolder
from mediffusion_core.run_io.checkpoints import list_checkpoints
from simulations.engine.in_process import run_in_process

SMALLEST = (
    "training.autoencoder.local_epochs=1",
    "training.joint.local_epochs=1",
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=1",
    "evaluation.every=1",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    asked = os.environ.get("FED_MEDIFFUSION_DOCKER") == "1"
    reason = "no Docker engine answers" if asked else "made by make docker-test"
    if asked and has_engine():
        return
    for item in items:
        if item.get_closest_marker("docker"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def images() -> None:
    build_images()


@pytest.fixture(scope="session")
def kits(images: None, tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return new_kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture(scope="session")
def federation(images: None, kits: Kits) -> Iterator[Federation]:
    """Encrypted and authenticated, the same for all tests."""
    started = Federation("fedmed-test", ("compose.yaml", "compose.tls.yaml"), kits.folder)
    try:
        started.up()
        yield started
    finally:
        started.down()


@pytest.fixture(scope="session")
def sign(images: None, kits: Kits) -> Callable[[str], str]:
    """Makes a run's configuration of its overrides, with the coordinator's signature."""
    return lambda overrides: signed(kits.folder / "authority", overrides)


@pytest.fixture(scope="session")
def overrides(tiny: tuple[str, ...]) -> tuple[str, ...]:
    """A round of each stage."""
    return (*tiny, *SMALLEST)


@pytest.fixture
def must_be_simulated(tmp_path: Path) -> Callable[[Path, tuple[str, ...]], None]:
    """Holds the weights of a run at the server against those of a simulation."""

    def compare(run: Path, overrides: tuple[str, ...]) -> None:
        own = (f"run.folder='{tmp_path / 'simulated'}'", f"data.store='{tmp_path / 'store'}'")
        simulated = run_in_process("config", (*overrides, *own))
        expected = list_checkpoints(simulated.checkpoints)[-1]
        found = list_checkpoints(run / "checkpoints")[-1]
        print(f"largest difference to the simulation: {must_be_equal(found, expected):.1e}")

    return compare


def must_be_equal(found: ComponentFolder, expected: ComponentFolder) -> float:
    """The largest difference of two checkpoints' weights, which is at most 1e-5."""
    largest = 0.0
    assert found.components() == expected.components()
    for component in expected.components():
        ours, theirs = found.load(component), expected.load(component)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)
            if value.numel():
                largest = max(largest, float((ours[name] - value).abs().max()))
    return largest

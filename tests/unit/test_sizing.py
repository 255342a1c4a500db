"""Sizes from the settings are those of the messages that a run sends."""

import pytest
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.payload import pack
from mediffusion_core.protocol import AUTOENCODER, HEAD, JOINT, UNET
from server.state import fresh_state
from simulations.cli import app
from simulations.sizing import Sizes


def test_sizes_are_those_of_the_packed_components(tiny: tuple[str, ...]) -> None:
    settings = compose("config", tiny)
    components = fresh_state(settings, 5).components

    def packed(*names: str) -> int:
        return sum(len(pack(components[name])[-1]) for name in names)

    sizes = Sizes.of(settings, 5)
    assert sizes.autoencoder == pytest.approx(packed(AUTOENCODER), rel=0.1)
    assert sizes.joint_down == sizes.joint_up == pytest.approx(packed(*JOINT), rel=0.1)
    assert sizes.evaluation == pytest.approx(packed(UNET, HEAD), rel=0.1)


def test_a_teacher_goes_to_the_sites_and_does_not_come_back(tiny: tuple[str, ...]) -> None:
    teaching = compose("config", (*tiny, "training.joint.consistency.weight=1"))
    sizes = Sizes.of(teaching, 5)
    assert sizes.joint_down == sizes.joint_up + sizes.evaluation


def test_memory_grows_by_the_replies(tiny: tuple[str, ...]) -> None:
    sizes = Sizes.of(compose("config", tiny), 5)
    assert sizes.memory(30) - sizes.memory(3) == 27 * 2 * sizes.joint_up


def test_the_paper_is_sized_without_allocating_it() -> None:
    result = CliRunner().invoke(app, ["sizing", "model=paper", "data.image_size=256"])
    assert result.exit_code == 0, result.output
    assert "GB" in result.output
    assert [line.split()[1] for line in result.output.splitlines() if "│ 300" in line] == ["300"]

"""Sizes from the settings are those of the messages that a run sends."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.messaging.protocol import AUTOENCODING, HEAD, JOINT, UNET
from mediffusion_core.messaging.serialization import pack
from server.state import fresh_state, stored
from simulations.cli.main import app
from simulations.engine.in_process import run_in_process
from simulations.engine.sizing import Sizes


def test_sizes_are_those_of_the_packed_components(tiny: tuple[str, ...]) -> None:
    settings = compose("config", tiny)
    components = stored(fresh_state(settings, 5))

    def packed(*names: str) -> int:
        return sum(len(pack(components[name])[-1]) for name in names)

    sizes = Sizes.of(settings, 5)
    assert sizes.autoencoder == pytest.approx(packed(*AUTOENCODING), rel=0.1)
    assert sizes.joint_down == sizes.joint_up == pytest.approx(packed(*JOINT), rel=0.1)
    assert sizes.evaluation == pytest.approx(packed(UNET, HEAD), rel=0.1)


def test_a_teacher_goes_to_the_sites_and_does_not_come_back(tiny: tuple[str, ...]) -> None:
    teaching = compose("config", (*tiny, "training.joint.consistency.weight=1"))
    sizes = Sizes.of(teaching, 5)
    assert sizes.joint_down == sizes.joint_up + sizes.evaluation


@pytest.mark.parametrize("compression", ["none", "int8"])
def test_a_run_moves_what_was_said(tiny: tuple[str, ...], tmp_path: Path, compression: str) -> None:
    places = (f"run.folder='{tmp_path / 'run'}'", f"data.store='{tmp_path / 'store'}'")
    short = ("federation.autoencoder_rounds=1", "federation.num_rounds=1", "evaluation.every=1")
    overrides = (*tiny, *short, *places, f"federation.compression={compression}")
    folder = run_in_process("config", overrides)
    sizes = Sizes.of(compose("config", overrides), 5)
    moved = {line["stage"]: line["traffic"] for line in folder.history() if "traffic" in line}
    said = {"autoencoder": (sizes.autoencoder,) * 2, "joint": (sizes.joint_down, sizes.joint_up)}
    for stage, (down, up) in said.items():
        assert set(moved[stage]) == {"site-0", "site-1", "site-2"}
        for site in moved[stage].values():
            # Names and shapes, a hundred bytes a tensor, weigh in so small a network.
            assert down < site["bytes_received"] < 1.35 * down
            assert up < site["bytes_sent"] < 1.35 * up


def test_the_paper_is_sized_without_allocating_it() -> None:
    result = CliRunner().invoke(app, ["sizing", "model=paper", "data.image_size=256"])
    assert result.exit_code == 0, result.output
    assert "GB" in result.output
    assert [line.split()[1] for line in result.output.splitlines() if "│ 300" in line] == ["300"]

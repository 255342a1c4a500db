"""Sizes from the settings are those of the messages that a run sends."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.messaging.compression import component_compression, compress_weights
from mediffusion_core.messaging.protocol import AUTOENCODING, HEAD, JOINT, UNET
from mediffusion_core.messaging.serialization import pack
from mediffusion_core.models import encoder_half
from server.checkpoints import stored
from server.messages import array_records, size_of
from server.state import fresh_state
from simulations.cli.main import app
from simulations.engine.in_process import run_in_process
from simulations.engine.sizing import Sizes


def test_sizes_are_those_of_the_packed_components(tiny: tuple[str, ...]) -> None:
    settings = compose("config", tiny)
    components = stored(fresh_state(settings, 5))

    def packed(*names: str) -> int:
        travelling = (
            compress_weights(components[name], component_compression(name, "none"))
            for name in names
        )
        return sum(len(pack(one)[-1]) for one in travelling)

    sizes = Sizes.of(settings, 5)
    assert sizes.autoencoder == pytest.approx(packed(*AUTOENCODING), rel=0.1)
    assert sizes.joint_down == sizes.joint_up == pytest.approx(packed(*JOINT), rel=0.1)
    evaluated = {UNET: encoder_half(components[UNET]), HEAD: components[HEAD]}
    assert sizes.evaluation == pytest.approx(size_of(array_records(evaluated)), rel=0.1)


def test_a_teacher_goes_to_the_sites_and_does_not_come_back(tiny: tuple[str, ...]) -> None:
    teaching = compose("config", (*tiny, "training.joint.consistency.weight=1"))
    sizes, components = Sizes.of(teaching, 5), stored(fresh_state(teaching, 5))
    averages = sum(value.nbytes for name in (UNET, HEAD) for value in components[name].values())
    assert sizes.joint_down == sizes.joint_up + averages


def test_memory_grows_by_control_variates_alone(tiny: tuple[str, ...]) -> None:
    settings = compose("config", tiny)
    sizes = Sizes.of(settings, 5)
    assert sizes.memory(30) == sizes.memory(3) and sizes.disk(30, settings) == 4 * sizes.checkpoint
    robust = compose("config", (*tiny, "federation.num_malicious_sites=1"))
    assert sizes.disk(30, robust) - sizes.disk(3, robust) == 27 * sizes.decoded
    scaffold = compose("config", (*tiny, "training.joint.control_variates=true"))
    sizes = Sizes.of(scaffold, 5)
    assert sizes.memory(30) - sizes.memory(3) == 27 * sizes.control == 9 * (sizes.decoded - 8)


@pytest.mark.parametrize(("compression", "controls"), [("none", True), ("int8", False)])
def test_a_run_sends_the_predicted_number_of_bytes(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path, compression: str, controls: bool
) -> None:
    places = (f"run.folder='{tmp_path / 'run'}'", f"data.store='{tmp_path / 'store'}'")
    # The second round of a stage: in the first one moments are zero, and are not sent.
    short = ("federation.autoencoder_rounds=2", "federation.num_rounds=2", "evaluation.every=2")
    varied = (
        f"federation.compression={compression}",
        f"training.joint.control_variates={str(controls).lower()}",
    )
    overrides = (*tiny, *few, *short, *places, *varied)
    folder = run_in_process("config", overrides)
    sizes = Sizes.of(compose("config", overrides), 5)
    moved = {line["stage"]: line["traffic"] for line in folder.history() if "traffic" in line}
    said = {"autoencoder": (sizes.autoencoder,) * 2, "joint": (sizes.joint_down, sizes.joint_up)}
    for stage, (down, up) in said.items():
        assert set(moved[stage]) == {"site-0", "site-1", "site-2"}
        for site in moved[stage].values():
            # Names and shapes, a hundred bytes a tensor, weigh in so small a network.
            assert down < site["bytes_received"] < 1.35 * down
            assert 0.95 * up < site["bytes_sent"] < 1.35 * up
    # A site without labels sends no classifier.
    sent = [moved["joint"][f"site-{number}"]["bytes_sent"] for number in (1, 2)]
    with torch.device("meta"):
        head = stored(fresh_state(compose("config", overrides), 5))[HEAD]
    assert sent[0] - sent[1] > sum(value.numel() for value in head.values())


def test_the_paper_is_sized_without_allocating_it() -> None:
    result = CliRunner().invoke(app, ["sizing", "model=paper", "data.image_size=256"])
    assert result.exit_code == 0, result.output
    assert "GB" in result.output
    assert [line.split()[1] for line in result.output.splitlines() if "│ 300" in line] == ["300"]

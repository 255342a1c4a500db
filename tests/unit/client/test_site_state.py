"""A site's own files that a continued run depends on: damaged, cut short, and in use."""

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from flwr.app import RecordDict
from helpers.messages import sent
from helpers.power_loss import LOSSES, Loss, cut_short
from torch import Tensor

from client import site
from client.trainer.private import PLAN
from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.sealed_tensors import load_tensors, save_tensors
from mediffusion_core.messaging import protocol
from mediffusion_core.privacy.ledger.ledger import Ledger
from server.state import fresh_state

Ask = Callable[..., RecordDict]


def flip(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


TENSORS = {"train": torch.arange(12.0).reshape(3, 4), "half": torch.ones(3).half()}


def test_every_flipped_bit_and_every_cut_file_is_recognised(tmp_path: Path) -> None:
    """A flipped bit in a note may remain unseen here; who wrote the note compares it."""
    path, draw = tmp_path / "latents", random.Random(0)
    save_tensors(path, TENSORS, {"codec": "0123"})
    content = path.read_bytes()
    for _ in range(200):
        if draw.random() < 0.8:
            flip(path, draw)
        else:
            path.write_bytes(content[: draw.randrange(len(content))])
        try:
            tensors, notes = load_tensors(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert notes != {"codec": "0123"}
            assert tensors.keys() == TENSORS.keys()
            assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
        path.write_bytes(content)
    assert load_tensors(path, ["half"])[0].keys() == {"half"}
    with pytest.raises(UserError, match="cannot be read"):
        load_tensors(tmp_path / "absent")


@pytest.mark.parametrize("loss", LOSSES)
def test_cut_short_at_any_moment_tensors_are_the_old_or_the_new(tmp_path: Path, loss: Loss) -> None:
    for moment in range(100):
        path = tmp_path / str(moment) / "latents"
        path.parent.mkdir()
        save_tensors(path, TENSORS, {"codec": "old"})
        new = {name: value + 1 for name, value in TENSORS.items()}

        def save(path: Path = path, new: Mapping[str, Tensor] = new) -> None:
            save_tensors(path, new, {"codec": "new"})

        cut = cut_short(moment, save, path.parent, loss)
        tensors, notes = load_tensors(path)
        expected = {"old": TENSORS, "new": new}[notes["codec"]]
        assert all(torch.equal(tensors[name], value) for name, value in expected.items())
        if not cut:
            assert notes["codec"] == "new"
            return
    raise AssertionError("it never ended")


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, ...]:
    return (f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}")


def test_damaged_latents_are_made_again(
    tiny: tuple[str, ...], places: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = (*tiny, *places)
    settings = compose("config", overrides)
    codec = {protocol.AUTOENCODER: fresh_state(settings, 5).codec(settings).state_dict()}

    def encode() -> bool:
        reply = sent(protocol.ENCODE, overrides, settings.fingerprint(), codec)
        return protocol.FAILURE not in reply.content

    folder = tmp_path / "run" / "sites" / "site-0"
    latents = folder / "latents.safetensors"
    assert encode()
    tensors, digests = load_tensors(latents)
    # They are mapped from the file, which is written over below.
    made = {name: value.clone() for name, value in tensors.items()}
    content, written = latents.read_bytes(), latents.stat().st_ino
    assert encode() and latents.stat().st_ino == written  # as it is
    for broken in (content[:-1] + bytes([content[-1] ^ 1]), content[:1000], b""):
        latents.write_bytes(broken)
        assert encode()
        again, notes = load_tensors(latents)
        assert notes == digests and again.keys() == made.keys()
        assert all(torch.equal(again[name], value) for name, value in made.items())
    log = (folder / "site.log").read_text()
    assert log.count("the images are encoded again") == 3
    assert "latents.safetensors is damaged" in log


def test_damaged_counts_are_not_drawn_again_without_the_site(
    tiny: tuple[str, ...], places: tuple[str, ...], tmp_path: Path
) -> None:
    """A new draw is charged to the patients."""
    private = ("privacy=dp", "privacy.noise_multiplier=1.0", "privacy.target_epsilon=null")
    overrides = (*tiny, *places, *private, "privacy.target_delta=1e-4")
    known = compose("config", overrides).fingerprint()
    folder = tmp_path / "run" / "sites" / "site-0"

    def answers() -> bool:
        return protocol.FAILURE not in sent(protocol.CENSUS, overrides, known).content

    def charged() -> int:
        return len(Ledger.open(tmp_path / "run" / "ledger", begin=False).entries())

    assert answers() and answers() and charged() == 1
    plan = folder / PLAN
    content, draw = plan.read_bytes(), random.Random(0)
    for _ in range(20):
        flip(plan, draw)
        assert not answers()
        plan.write_bytes(content)
    assert f"{plan} is damaged" in (folder / "site.log").read_text()
    assert answers() and charged() == 1
    plan.unlink()
    assert answers() and charged() == 2


def test_two_processes_of_a_site_take_turns(
    tiny: tuple[str, ...],
    places: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = (*tiny, *places)
    settings = compose("config", overrides)
    folder = tmp_path / "run" / "sites" / "site-0"
    folder.mkdir(parents=True)
    held = FileLock(folder / "site.lock")

    def ask() -> RecordDict:
        return sent(protocol.CENSUS, overrides, settings.fingerprint()).content

    monkeypatch.setattr(site, "PATIENCE", 0.1)
    with held:
        assert protocol.FAILURE in ask()
    assert "another process works in" in (folder / "site.log").read_text()
    monkeypatch.setattr(site, "PATIENCE", 60.0)
    with held:
        replies: list[RecordDict] = []
        waiting = threading.Thread(target=lambda: replies.append(ask()))
        waiting.start()
        waiting.join(timeout=0.5)
        assert replies == []
    waiting.join()
    assert protocol.FAILURE not in replies[0]

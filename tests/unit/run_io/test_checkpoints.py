"""Checkpoints: what is written, what a kill or a damaged disk leaves, and what is read again."""

import os
import random
import subprocess
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from helpers.power_loss import LOSSES, Loss, cut_short
from torch import Tensor

from mediffusion_core.common.component_folder import (
    ComponentFolder,
    read_folder,
    write_folder,
)
from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.checkpoints import (
    Checkpoint,
    list_checkpoints,
    newest_checkpoint,
    save_checkpoint,
)


def components(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "unet": {"weight": weight, "turned": weight.T, "half": weight.half()},
        "head": {"bias": torch.arange(3), "empty": torch.empty(2, 0)},
    }


def nothing(line: str) -> None:
    raise AssertionError(line)


def newest(root: Path, report: Callable[[str], None] = nothing) -> Checkpoint | None:
    return newest_checkpoint(list_checkpoints(root), report)


def test_a_checkpoint_holds_every_tensor_as_it_was(tmp_path: Path) -> None:
    state = {"settings_hash": "abc", "best": {"round": 2, "auc_pooled": 0.7}, "seconds": 1.5}
    saved = save_checkpoint(tmp_path, 7, "joint", 3, components(), state)
    [found] = list_checkpoints(tmp_path)
    assert found == saved == newest(tmp_path)
    assert (found.number, found.stage, found.round_number) == (7, "joint", 3)
    assert found.components() == ["head", "unet"]
    assert found.state == {"stage": "joint", "round": 3, **state}
    for name, tensors in components().items():
        loaded = found.load(name)
        assert loaded.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert loaded[key].dtype == tensor.dtype
            assert torch.equal(loaded[key], tensor)


def test_checkpoints_are_listed_by_age(tmp_path: Path) -> None:
    for number in (2, 10, 9, 100_000):
        save_checkpoint(tmp_path, number, "joint", number, components(), {})
    kept = list_checkpoints(tmp_path)
    assert [one.name for one in kept] == ["joint-2", "joint-9", "joint-10", "joint-100000"]
    kept[1].remove()
    assert [one.number for one in list_checkpoints(tmp_path)] == [2, 10, 100_000]
    assert len(list(tmp_path.iterdir())) == 3


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "absent") == []
    assert newest(tmp_path / "absent") is None


def test_what_a_killed_process_leaves_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, "joint", 1, components(), {})
    for name in (".000002-joint-2.4711", ".000003-joint-3.new", "notes"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "unet.safetensors").write_bytes(b"half")
    (tmp_path / ".000002-joint-2.4711" / "state.json").write_text("{}")
    assert [one.number for one in list_checkpoints(tmp_path)] == [1]


# Damage


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, "joint", 1, components(), {}).folder
    check = ["sha256sum", "--strict", "--check", "SHA256SUMS"]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "head.safetensors: OK",
        "state.json: OK",
        "unet.safetensors: OK",
    ]


def test_every_flipped_bit_and_every_cut_file_is_recognised(tmp_path: Path) -> None:
    """200 random ones; the checkpoint before it is taken, and one line says so."""
    older = save_checkpoint(tmp_path, 1, "joint", 1, components(1), {"seconds": 1.0})
    newer = save_checkpoint(tmp_path, 2, "joint", 2, components(2), {"seconds": 2.0})
    files = sorted(newer.folder.iterdir())
    draw = random.Random(0)
    for _ in range(200):
        file = draw.choice(files)
        content = file.read_bytes()
        broken = bytearray(content)
        if draw.random() < 0.5:
            broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        else:
            del broken[draw.randrange(len(broken)) :]
        file.write_bytes(broken)
        lines: list[str] = []
        assert newest(tmp_path, lines.append) == older, file
        [line] = lines
        assert line.startswith("damaged: checkpoint 000002-joint-2 (") and "\n" not in line
        assert line.endswith("continues from checkpoint 000001-joint-1, after joint round 1")
        file.write_bytes(content)
    assert newest(tmp_path) == newer


def remove(file: Path) -> None:
    file.unlink()


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link_to_a_device(file: Path) -> None:
    """Its content has no end."""
    file.unlink()
    file.symlink_to("/dev/zero")


def replace_by_pipe(file: Path) -> None:
    """Reading it waits for a writer."""
    file.unlink()
    os.mkfifo(file)


def write_again(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("change", "name", "told"),
    [
        (remove, "unet.safetensors", "unet.safetensors is missing"),
        (remove, "SHA256SUMS", "SHA256SUMS is missing"),
        (write_again, "head.safetensors", "head.safetensors is not as it was written"),
        (write_again, "SHA256SUMS", "SHA256SUMS is not as it was written"),
        (replace_by_folder, "state.json", "state.json cannot be read (Is a directory)"),
        (link_to_a_device, "state.json", "state.json cannot be read (Invalid argument)"),
        (link_to_a_device, "SHA256SUMS", "SHA256SUMS cannot be read (Invalid argument)"),
        (replace_by_pipe, "unet.safetensors", "unet.safetensors cannot be read (Invalid argument)"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, change: Callable[[Path], None], name: str, told: str
) -> None:
    checkpoint = save_checkpoint(tmp_path, 1, "joint", 1, components(), {})
    assert checkpoint.damage() is None
    change(checkpoint.folder / name)
    assert checkpoint.damage() == told
    with pytest.raises(
        UserError, match=r"^all checkpoints in .* are damaged: .*another run\.folder"
    ):
        newest(tmp_path)


def test_a_file_more_is_damage_too(tmp_path: Path) -> None:
    """It would be loaded with the components that were saved."""
    checkpoint = save_checkpoint(tmp_path, 1, "joint", 1, components(), {})
    (checkpoint.folder / "extra.safetensors").write_bytes(b"")
    assert checkpoint.damage() == "SHA256SUMS is not as it was written"


def test_files_may_be_links_out_of_the_folder(tmp_path: Path) -> None:
    """As in the caches of Hugging Face and DVC; a changed file behind a link is damage."""
    checkpoint = save_checkpoint(tmp_path, 1, "joint", 1, components(), {})
    (cache := tmp_path / "cache").mkdir()
    for file in checkpoint.folder.iterdir():
        file.rename(cache / file.name)
        file.symlink_to(cache / file.name)
    assert newest(tmp_path) == checkpoint
    assert torch.equal(checkpoint.load("head")["bias"], components()["head"]["bias"])
    write_again(cache / "head.safetensors")
    assert checkpoint.damage() == "head.safetensors is not as it was written"
    checkpoint.remove()
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("change", [link_to_a_device, replace_by_pipe])
def test_without_checksums_what_never_ends_is_refused_too(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    write_folder(tmp_path / "model", components(), {})
    (tmp_path / "model" / "SHA256SUMS").unlink()
    for name in ("state.json", "unet.safetensors"):
        change(tmp_path / "model" / name)
    model = read_folder(tmp_path / "model")
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        _ = model.state
    with pytest.raises(UserError, match=r"unet\.safetensors cannot be read"):
        model.load("unet")


def test_a_folder_from_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", components(1), {"round": 1})
    (tmp_path / "model" / "SHA256SUMS").unlink()
    assert read_folder(tmp_path / "model").state == {"round": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * 10**5])
def test_a_state_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path / "model", components(), {})
    (tmp_path / "model" / "SHA256SUMS").unlink()
    (tmp_path / "model" / "state.json").write_bytes(content)
    with pytest.raises(UserError, match=r"state\.json (cannot be read|is no JSON object)"):
        _ = read_folder(tmp_path / "model").state


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 40, None])
def test_weights_that_are_none_are_refused(tmp_path: Path, content: bytes | None) -> None:
    write_folder(tmp_path / "model", components(), {})
    (tmp_path / "model" / "SHA256SUMS").unlink()
    weights = tmp_path / "model" / "unet.safetensors"
    weights.unlink()
    if content is not None:
        weights.write_bytes(content)
    with pytest.raises(UserError, match=r"unet\.safetensors cannot be read"):
        read_folder(tmp_path / "model").load("unet")


# Kills


def is_whole(folder: ComponentFolder, seed: int) -> bool:
    return folder.damage() is None and all(
        torch.equal(folder.load(name)[key], tensor)
        for name, tensors in components(seed).items()
        for key, tensor in tensors.items()
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_cut_short_at_any_moment_a_checkpoint_is_whole_or_absent(
    tmp_path: Path, loss: Loss
) -> None:
    """The process ends itself at each of the file operations in turn."""
    found = set()
    for moment in count():
        root = tmp_path / str(moment)
        older = save_checkpoint(root, 1, "joint", 1, components(1), {})

        def save(root: Path = root, older: Checkpoint = older) -> None:
            save_checkpoint(root, 2, "joint", 2, components(2), {})
            older.remove()

        cut = cut_short(moment, save, root, loss)
        taken = newest(root)
        assert taken is not None and is_whole(taken, taken.number)
        assert cut or list_checkpoints(root) == [taken] != [older]
        found.add(taken.number)
        save_checkpoint(root, 3, "joint", 3, components(3), {})
        assert not list(root.glob(".*"))  # left behind by the cut
        if not cut:
            break
    assert found == {1, 2}


@pytest.mark.parametrize("loss", LOSSES)
def test_cut_short_at_any_moment_a_model_that_is_replaced_is_never_a_torn_one(
    tmp_path: Path, loss: Loss
) -> None:
    """Where its folder stands, all of it stands there, the old or the new."""
    found = set()
    for moment in count():
        folder = tmp_path / str(moment) / "model"
        write_folder(folder, components(1), {"round": 1})
        again = partial(write_folder, folder, components(2), {"round": 2})
        cut = cut_short(moment, again, folder.parent, loss)
        if folder.is_dir():
            saved = read_folder(folder)
            found.add(saved.state["round"])
            assert is_whole(saved, saved.state["round"])
        if not cut:
            break
    assert found == {1, 2}


def test_a_save_that_fails_does_not_cost_the_older_version(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", components(1), {"round": 1})
    with pytest.raises(TypeError):
        write_folder(tmp_path / "model", components(2), {"round": object()})
    saved = read_folder(tmp_path / "model")
    assert saved.state == {"round": 1}
    assert torch.equal(saved.load("unet")["weight"], components(1)["unet"]["weight"])


def test_a_newer_version_takes_the_place_of_the_older(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", components(1), {"round": 1})
    write_folder(tmp_path / "model", {"unet": components(2)["unet"]}, {"round": 2})
    saved = read_folder(tmp_path / "model")
    assert saved.components() == ["unet"]
    assert torch.equal(saved.load("unet")["weight"], components(2)["unet"]["weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_an_earlier_process_left_behind_is_cleared_away(tmp_path: Path) -> None:
    """Every kill would otherwise leave a whole set of weights on the disk for good."""
    leftover = tmp_path / ".000000-autoencoder-1.new"
    leftover.mkdir()
    (leftover / "unet.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, 1, "joint", 1, components(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001-joint-1"]

"""Checkpoints and models: one file of a folder is flipped, cut, missing, foreign, or no file.

With `signed` the checksums are those of the changed files, as another program may have written
them. A link is read as the file behind it (docs/decisions/0022-links-in-models.md), so that its
content decides. A device or pipe must not be read.

A case takes about 50 ms, since it loads networks or writes and syncs a run's records. So a tenth
of the asked cases is run: 200 in the tests.
"""

import os
import shutil
from pathlib import Path

import hypothesis.strategies as st
import torch
from helpers.untrained import untrained_model

from configs.compose import compose
from fuzz.harness import Target
from fuzz.mutations import nearly
from fuzz.networks import SMALL
from mediffusion_core.common import component_folder
from mediffusion_core.common.component_folder import STATE, SUMS
from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.run_folder import RunFolder
from server.checkpoints import restore_state, save_state
from server.state import fresh_state

CLASSES = ("effusion", "nodule")
WHATS = ("content", "content", "content", "missing", "folder", "extra", "link", "device", "pipe")
Case = tuple[int, int, str, bytes | None, bool]
"""Which folder, which file, what is done to it, new content, and whether it is signed."""


def target(root: Path) -> Target:
    """Resumes a run, or loads a model, after a change of one file."""
    settings = compose("config", SMALL)
    run_folder = RunFolder(root)
    state = fresh_state(settings, len(CLASSES))
    for stage in ("autoencoder", "joint"):
        save_state(state, run_folder, settings, stage)
    untrained_model(settings, CLASSES).save(run_folder.model)
    newest = max(run_folder.checkpoints.iterdir())
    folders = (newest, run_folder.model)
    whole = {path: path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}
    names = [sorted(path for path in whole if path.parent == folder) for folder in folders]
    touched: list[Path] = []

    def run(case: Case) -> None:
        place, which, what, content, signed = case
        for path in touched:
            _remove(path)
            if path in whole:
                path.write_bytes(whole[path])
        folder = folders[place]
        path = names[place][which % len(names[place])]
        if what == "extra":
            path = folder / "extra.safetensors"
        touched[:] = [path, folder / SUMS]
        _remove(path)
        given = whole[names[place][0]] if content is None else content
        if what == "folder":
            path.mkdir()
        elif what == "device":
            path.symlink_to("/dev/zero")
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "link":
            (root / "elsewhere").write_bytes(given)
            path.symlink_to(root / "elsewhere")
        elif what != "missing":
            path.write_bytes(given)
        if signed:
            _remove(folder / SUMS)
            if all(one.is_file() for one in folder.iterdir()):
                (folder / SUMS).write_bytes(component_folder._sums(folder))
        if place:
            TrainedModel.load(folder, torch.device("cpu"))
            return
        restored = restore_state(run_folder, settings)
        if restored is not None and restored.saved == state.saved and not signed:
            assert not path.is_file() or path.read_bytes() == whole.get(path)

    seeds = [whole[path] for path in whole if path.name in (STATE, SUMS)]
    small = sorted((path for path in whole if path.suffix == ".safetensors"), key=os.path.getsize)
    seeds += [whole[path] for path in small[:3]]
    return Target(
        root=root,
        cases=st.tuples(
            st.integers(0, 1),
            st.integers(0, 20),
            st.sampled_from(WHATS),
            st.one_of(st.none(), *[nearly(seeds)] * 4),
            st.booleans(),
        ),
        run=run,
        refused=(UserError,),
        share=0.1,
        seeds=[bytes([0]) + seed for seed in seeds if len(seed) < 2**14],
        of_bytes=lambda given: (
            given[0] % 2 if given else 0,
            given[0] >> 1 if given else 0,
            "content",
            given[1:],
            True,
        ),
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

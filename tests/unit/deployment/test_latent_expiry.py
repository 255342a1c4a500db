"""Encoded images leave a site's disk by its policy."""

import os
import time
from pathlib import Path

import pytest

from mediffusion_core.training.latent_files import DAY, LATENTS, UNFINISHED, expire_latents


def kept(runs: Path, run: str, days: float, name: str = LATENTS) -> Path:
    path = runs / run / "sites" / "uni" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    used = time.time() - days * DAY
    os.utime(path, (used, used))
    return path


@pytest.mark.parametrize(("keep", "days"), [(3, 3), ("run", 7)])
def test_latents_are_deleted_days_after_their_last_use(
    tmp_path: Path, keep: int, days: int
) -> None:
    old = [kept(tmp_path, "a", days + 0.1), kept(tmp_path, "b", days + 0.1, UNFINISHED)]
    new = [kept(tmp_path, "c", days - 0.1), kept(tmp_path, "a", days + 0.1, "site.log")]
    assert sorted(expire_latents(tmp_path, keep)) == sorted(old)
    assert not any(path.exists() for path in old) and all(path.exists() for path in new)


def test_a_folder_without_runs_is_fine(tmp_path: Path) -> None:
    assert expire_latents(tmp_path / "none", "run") == []

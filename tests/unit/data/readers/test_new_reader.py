"""A new data set: a reader, its line in `READERS`, and a file in `configs/data`."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.compose import FOLDER, change, compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import READERS, Source
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.settings import DataSettings
from mediffusion_core.settings.site_file import SiteFile

IMAGES = 40


def read(settings: DataSettings, seed: int) -> Source:
    """Squares of two classes, each of a patient of its own."""
    labels = np.zeros((IMAGES, 2), np.float32)
    labels[np.arange(IMAGES), np.arange(IMAGES) % 2] = 1
    names = tuple(f"square-{number}" for number in range(IMAGES))
    return Source("squares", ("dark", "light"), False, names, labels, names, None, load, "1")


def load(index: int) -> NDArray[np.uint8]:
    return np.random.default_rng(index).integers(0, 256, (16, 16), np.uint8)


@pytest.fixture
def _squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three steps that `docs/datasets/index.md` names."""
    folder = tmp_path / "configs"
    shutil.copytree(FOLDER, folder)
    (folder / "data" / "squares.yaml").write_text(
        "# Squares.\nsource: squares\nimage_size: 32\nchannels: 1\npartition: uniform\n"
    )
    monkeypatch.setattr(sys.modules["configs.compose"], "FOLDER", folder)
    monkeypatch.setitem(READERS, "squares", read)


@pytest.mark.usefixtures("_squares")
def test_a_reader_a_line_and_a_file_are_enough(tmp_path: Path) -> None:
    overrides = ["data=squares", "model=tiny32", "federation.num_sites=2"]
    settings = compose("config", [*overrides, f"data.store={tmp_path / 'store'}"])
    dataset = open_federated_dataset(settings)
    assert len(dataset.clients) == 2
    assert dataset.store.classes == ("dark", "light")
    assert sum(len(client.rows) for client in dataset.clients) == IMAGES


@pytest.mark.usefixtures("_squares")
def test_a_site_file_may_name_a_new_reader() -> None:
    site = SiteFile.model_validate({"name": "uni", "data": {"source": "squares", "root": "/data"}})
    assert site.data_settings(32, 1).source == "squares"


def test_a_change_to_an_unknown_reader_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.source=squares.* allowed: phantom, "):
        change(compose("config", []), ["data.source=squares"])

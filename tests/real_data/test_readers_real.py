"""The readers on real folders: published counts, and no patient in two splits."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mediffusion_core.data import Store, partition, prepare, read_source
from mediffusion_core.settings import DataSettings

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}"),
]


def isic(**more: object) -> DataSettings:
    given = {"source": "isic2019", "root": DATA / "isic2019", "image_size": 32, "channels": 3}
    return DataSettings.model_validate(given | more)


@pytest.fixture(scope="module")
def isic_store(stores: Path) -> Store:
    return prepare(read_source(isic(), 0), isic(), stores)


def overlap(store: Store, settings: DataSettings, sites: int) -> int:
    """How many groups, or units joined by duplicates, stand in more than one split or site."""
    sides: Counter[object] = Counter()
    for client in partition(store, settings, sites, 0):
        for part in (client.train, client.validation, client.test):
            sides.update({store.groups[index] for index in part})
            sides.update(set(store.units[part].tolist()))
    return sum(count > 1 for count in sides.values())


def test_isic_counts() -> None:
    source = read_source(isic(), 0)
    assert len(source.image_ids) == 10_015
    assert len(set(source.groups)) == 7_470
    assert source.classes == ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC")
    assert source.labels.sum(axis=0).tolist() == [1113, 6705, 514, 327, 1099, 115, 142]
    assert source.centres is not None
    given = Counter(source.centres)
    for move in source.moves:
        given.update({move.given: 1, move.centre: -1})
    assert given == {
        "vidir_molemax": 3954, "vidir_modern": 3363, "rosendahl": 2259, "vienna_dias": 439,
    }  # fmt: skip
    assert len({move.group for move in source.moves}) == 9


def test_isic_masks_lie_on_their_lesions() -> None:
    source = read_source(isic(image_size=256), 0)
    assert source.splits is None
    assert source.regions is not None
    darker, shares = [], []
    for index in range(0, len(source.image_ids), 100):
        mask, pixels = source.regions(index, None), source.load(index)
        assert mask is not None
        assert mask.dtype == np.bool_ and mask.shape == pixels.shape[:2] == (150, 200)
        shares.append(mask.mean())
        if mask.any() and not mask.all():
            darker.append(pixels[mask].mean() < pixels[~mask].mean())
    assert all(0 < share <= 1 for share in shares)
    assert 0.1 < np.median(shares) < 0.5
    assert np.mean(darker) > 0.9


def test_isic_store_is_whole(isic_store: Store) -> None:
    assert isic_store.images.shape == (10_015, 32, 32, 3)
    assert isic_store.bad == ()
    assert isic_store.images.reshape(10_015, -1).std(axis=1).min() > 0


@pytest.mark.parametrize(
    ("kind", "sites"), [("natural", 4), ("uniform", 3), ("dirichlet", 3), ("quantity", 3)]
)
def test_no_lesion_on_two_sides(isic_store: Store, kind: str, sites: int) -> None:
    assert overlap(isic_store, isic(partition=kind), sites) == 0


def test_every_centre_labels_every_class_it_trains_on(isic_store: Store) -> None:
    for client in partition(isic_store, isic(labelled_fraction=0.02), 4, 0):
        labels = isic_store.labels[client.train]
        kept = labels[client.labelled]
        assert (kept.any(axis=0) == labels.any(axis=0)).all()
        assert len(kept) <= np.ceil(0.02 * len(labels)) + 7


def test_chestxray14(stores: Path) -> None:
    settings = DataSettings(
        source="chestxray14", root=DATA / "nih_chestxray14", image_size=32, channels=1,
        partition="uniform",
    )  # fmt: skip
    source = read_source(settings, 0)
    assert source.splits is None and source.regions is None  # the sample has no lists and boxes
    store = prepare(source, settings, stores)
    assert store.images.shape == (1000, 32, 32, 1)
    assert len(set(store.groups)) == 264
    assert len(store.classes) == 14
    assert len(store.duplicates) == 0
    assert overlap(store, settings, 3) == 0


def test_breastmnist(tmp_path: Path) -> None:
    settings = DataSettings(
        source="medmnist", root=DATA / "breastmnist.npz", image_size=28, channels=1,
        partition="uniform",
    )  # fmt: skip
    source = read_source(settings, 0)
    store = prepare(source, settings, tmp_path)
    assert store.images.shape == (546 + 78 + 156, 28, 28, 1)
    assert source.splits is not None
    assert Counter(source.splits) == {"train": 546, "validation": 78, "test": 156}
    assert store.classes in (("0", "1"), ("malignant", "normal, benign"))
    with np.load(DATA / "breastmnist.npz") as arrays:
        assert np.array_equal(store.images[:546, :, :, 0], arrays["train_images"])
        assert np.array_equal(store.labels[-156:].argmax(axis=1), arrays["test_labels"][:, 0])
    # The set is known to hold scans several times; one pair of equal images has opposite labels.
    equal = [
        (a, b) for a, b in store.duplicates if np.array_equal(store.images[a], store.images[b])
    ]
    assert any((store.labels[a] != store.labels[b]).any() for a, b in equal)
    assert overlap(store, settings, 3) == 0

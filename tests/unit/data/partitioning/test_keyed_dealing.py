"""With privacy one unit more or less changes nothing about any other unit."""

import csv
import dataclasses
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.compose import change, compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import READERS, Source, Store, read_source
from mediffusion_core.data.dataset import UnitNames
from mediffusion_core.data.partitioning.dealing_record import (
    record_dealing,
    require_recorded_dealing,
)
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    deal,
    require_unit,
)
from mediffusion_core.data.partitioning.keyed_dealing import UnitHash
from mediffusion_core.data.partitioning.splits import ClientPartition
from mediffusion_core.data.pseudonyms import hashed
from mediffusion_core.data.readers.chexpert import FINDINGS
from mediffusion_core.data.store import duplicates
from mediffusion_core.settings import Settings
from unit.data.readers.test_dicom import dataset as dicom_file
from unit.data.readers.test_dicom import save as save_dicom

Unit = tuple[int, str, int, int]
"""Number of images, class, centre and published split (0 to 2) of a patient or lesion."""

Units = dict[int, Unit]
Maker = Callable[[Path, Units], list[str]]
"""Writes the tables of some units to a folder, and returns the settings that read them."""

CLASSES = ("NV", "MEL", "BCC")
SPLITS = ("train", "validation", "test")
LARGEST = 12
IMAGES_EACH = 3
CASES = 500


def write(path: Path, *rows: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def touch(path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def images(units: Units) -> list[tuple[int, int, Unit]]:
    return [(name, index, unit) for name, unit in units.items() for index in range(unit[0])]


def phantom(root: Path, units: Units) -> list[str]:
    sites = [sum(unit[2] == centre for unit in units.values()) for centre in range(2)]
    return [f"data.phantom.patients_per_site={sites}".replace(" ", "")]


def isic2019(root: Path, units: Units) -> list[str]:
    rows = [(f"ISIC_{unit}_{index}", str(unit), about) for unit, index, about in images(units)]
    for name, _, _ in rows:
        touch(root / "ISIC_2019_Training_Input" / f"{name}.jpg")
    every = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
    write(
        root / "ISIC_2019_Training_GroundTruth.csv",
        ["image", *every],
        *[[name, *(float(one == about[1]) for one in every)] for name, _, about in rows],
    )
    write(
        root / "ISIC_2019_Training_Metadata.csv",
        ["image", "lesion_id"],
        *[[name, lesion] for name, lesion, _ in rows],
    )
    write(
        root / "centers.csv",
        ["image", "center_name"],
        *[[name, f"centre {about[2]}"] for name, _, about in rows],
    )
    return [f"data.root='{root}'", "privacy.unit=lesion", FIXED]


def chestxray14(root: Path, units: Units) -> list[str]:
    found = {"NV": "Mass", "MEL": "Hernia", "BCC": "No Finding"}
    rows = []
    lists: dict[str, list[list[object]]] = {"train_val_list.txt": [], "test_list.txt": []}
    for unit, index, about in images(units):
        name = f"{unit:08d}_{index:03d}.png"
        touch(root / "images" / name)
        rows.append([name, found[about[1]], unit])
        lists["test_list.txt" if about[3] == 2 else "train_val_list.txt"].append([name])
    write(root / "Data_Entry_2017.csv", ["Image Index", "Finding Labels", "Patient ID"], *rows)
    for name, listed in lists.items():
        write(root / name, *listed)
    return [f"data.root='{root}'"]


def chexpert(root: Path, units: Units) -> list[str]:
    tables: dict[str, list[list[object]]] = {"train": [], "valid": [], "test": []}
    for unit, index, about in images(units):
        split = list(tables)[about[3]]
        name = f"{split}/patient{unit:05d}/study1/view{index}_frontal.jpg"
        touch(root / name)
        values = [float(number == CLASSES.index(about[1])) for number in range(13)]
        tables[split].append([f"CheXpert-v1.0/{name}", *values])
    for split, rows in tables.items():
        write(root / f"{split}.csv", ["Path", *FINDINGS], *rows)
    return [f"data.root='{root}'"]


def folder(root: Path, units: Units) -> list[str]:
    rows = [
        [f"{unit}/{index}.png", label, f"P{unit}", f"centre {centre}", SPLITS[split]]
        for unit, index, (_, label, centre, split) in images(units)
    ]
    for name, *_ in rows:
        touch(root / name)
    write(root / "labels.csv", ["image", "label", "patient", "site", "split"], *rows)
    columns = [f"data.columns.{name}={name}" for name in ("patient", "site", "split")]
    return [f"data.root='{root}'", "data.table=labels.csv", *columns, FIXED]


def dicom(root: Path, units: Units) -> list[str]:
    rows = []
    for unit, index, (_, label, centre, split) in images(units):
        name = f"{unit}-{index}.dcm"
        if not (root / name).exists():
            save_dicom(root / name, dicom_file(np.zeros((2, 2), "u2"), f"P{unit}"))
        rows.append([name, label, f"centre {centre}", SPLITS[split]])
    write(root / "labels.csv", ["image", "label", "site", "split"], *rows)
    columns = [f"data.columns.{name}={name}" for name in ("site", "split")]
    return [f"data.root='{root}'", "data.table=labels.csv", *columns, FIXED]


def medmnist(root: Path, units: Units) -> list[str]:
    """Images have no names but their places in a part, so units are added behind."""
    arrays = {}
    for number, part in enumerate(("train", "val", "test")):
        own = [unit for unit in units.values() if unit[3] == number]
        arrays[f"{part}_images"] = np.zeros((len(own), 2, 2), np.uint8)
        labels = [[CLASSES.index(unit[1])] for unit in own]
        arrays[f"{part}_labels"] = np.array(labels, np.int64).reshape(-1, 1)
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "set.npz", **arrays)
    return [f"data.root='{root / 'set.npz'}'", "privacy.unit=image", FIXED]


@lru_cache
def base(name: str) -> Settings:
    """Settings of a reader for two sites, composed once since Hydra takes longest."""
    sites = ("federation.num_sites=2", "data.phantom.patients_per_site=[1,1]")
    composed = compose("config", ["privacy=dp", f"data={name}", "data.image_size=64", *sites])
    data = composed.data.model_copy(update={"labelled_fraction_by_site": {}})
    return composed.model_copy(update={"data": data})


@lru_cache(maxsize=8)
def changed(name: str, given: tuple[str, ...]) -> Settings:
    return change(base(name), given)


FIXED = f"data.classes=[{','.join(CLASSES)}]"
MAKERS: dict[str, Maker] = {
    "phantom": phantom,
    "isic2019": isic2019,
    "medmnist": medmnist,
    "chestxray14": chestxray14,
    "chexpert": chexpert,
    "folder": folder,
    "dicom": dicom,
}
NATURAL = ("phantom", "isic2019", "folder", "dicom")
SEVERAL_FINDINGS = ("phantom", "chestxray14", "chexpert")
WITHOUT_SPLITS = ("phantom", "isic2019")
NOBODY = ("no patient is in the test set", "no image to train on", "no image is labelled")
ANCHORS: Units = {number: (1, CLASSES[number % 3], number % 2, number % 3) for number in range(6)}
"""Units that stay, so that there are two centres and all three published splits."""
MANY: Units = ANCHORS | {number: (2, "NV", 0, 0) for number in range(len(ANCHORS), 40)}

unit = st.tuples(
    st.integers(1, IMAGES_EACH), st.sampled_from(CLASSES), st.integers(0, 1), st.integers(0, 2)
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[str], Units, int]:
    """A reader, settings, some units, and the one of them that is added."""
    name = draw(st.sampled_from(list(READERS)))
    partitions = ["uniform"]
    partitions += ["natural"] * (name in NATURAL) + ["one_finding"] * (name in SEVERAL_FINDINGS)
    partition = draw(st.sampled_from(partitions))
    places = ["sites"] * 4 + ["server"] * (partition != "one_finding")
    asked = {
        "partition": partition,
        "splits": draw(st.sampled_from(["dealt", "official"][: 1 + (name not in WITHOUT_SPLITS)])),
        "labels_at": draw(st.sampled_from(places)),
        "labelled_fraction": draw(st.sampled_from([0.3, 0.7, 1.0])),
        "test_fraction": draw(st.sampled_from([0.2, 0.5])),
        "validation_fraction": draw(st.sampled_from([0.1, 0.3])),
        "use_unlabelled": draw(st.booleans()),
    }
    free = draw(st.lists(unit, min_size=1, max_size=LARGEST - len(ANCHORS)))
    units = ANCHORS | dict(enumerate(free, len(ANCHORS)))
    # Phantoms and the images of MedMNIST are named by their place, so only the last is added.
    last = name in ("phantom", "medmnist")
    added = max(units) if last else draw(st.integers(len(ANCHORS), max(units)))
    given = [f"data.{key}={str(value).lower()}" for key, value in asked.items()]
    return name, [*given, f"seed={draw(st.integers(0, 3))}"], units, added


def in_memory(source: Source) -> Store:
    """The store of a source, with one near duplicate in four images, of whatever unit."""
    count = len(source.image_ids)
    alike = [index for index, name in enumerate(source.image_ids) if hash_of(name) % 4 == 0]
    pairs = np.array(list(pairwise(alike)), np.int64).reshape(-1, 2)
    numbers = np.unique(source.groups, return_inverse=True)[1].astype(np.int64)
    return Store(
        images=np.zeros((count, 1, 1, 1), np.uint8),
        labels=source.labels,
        groups=source.groups,
        units=duplicates.units(numbers, pairs),
        centres=source.centres,
        splits=source.splits,
        image_ids=source.image_ids,
        classes=source.classes,
        multi_label=source.multi_label,
        duplicates=pairs,
        bad=(),
        place=Path(),
    )


def hash_of(name: str) -> int:
    return int(hashed(name, b"duplicates")[:8], 16)


def dealt(name: str, root: Path, units: Units, given: list[str]) -> FederatedDataset | None:
    """None where nobody is left to test on, or to train on at a site."""
    try:
        return dealt_or_refused(name, root, units, given)
    except UserError as error:
        assert any(why in str(error) for why in NOBODY), error
        return None


def dealt_or_refused(name: str, root: Path, units: Units, given: list[str]) -> FederatedDataset:
    composed = changed(name, (*MAKERS[name](root, units), *given))
    source = read_source(composed.data, composed.seed)
    dataset = deal(source, in_memory(source), composed)
    require_unit(dataset, composed)
    return dataset


def uses(dataset: FederatedDataset) -> dict[str, tuple[object, ...]]:
    """By image: site, split, labels, and the seed of its views."""
    assert dataset.unit_hash is not None
    found: dict[str, tuple[object, ...]] = {}
    for kind, clients in (("site", dataset.clients), ("centre", dataset.centres)):
        for client in clients:
            for split in SPLITS:
                rows = getattr(client, split)
                labels = np.nan_to_num(dataset.labels(client, split), nan=-1.0)
                for row, own in zip(rows.tolist(), labels.tolist(), strict=True):
                    name = dataset.store.image_ids[row]
                    seed = dataset.unit_hash.seed_of(name, "views 0")
                    found[f"{kind} {name}"] = (client.site, split, tuple(own), seed)
    return found


def order(dataset: FederatedDataset) -> list[str]:
    """The images of all sites in the order of their latents."""
    sets = [dataset.train(site) for site in range(len(dataset.clients))]
    return [dataset.store.image_ids[row] for images in sets for row in images.rows.tolist()]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@settings(
    max_examples=CASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_one_unit_moves_no_other(roots: Path, case: tuple[str, list[str], Units, int]) -> None:
    name, given_settings, units, added = case
    fewer = {number: unit for number, unit in units.items() if number != added}
    more = dealt(name, roots / name, units, given_settings)
    less = dealt(name, roots / name, fewer, given_settings)
    if more is None or less is None:
        return
    before, after = uses(less), uses(more)
    assert set(before) < set(after)
    assert {image: after[image] for image in before} == before
    others = set(less.store.image_ids)
    assert [image for image in order(more) if image in others] == order(less)


def dealing(fraction: float = 0.4, secret: bytes = b"secret") -> ClientPartition:
    """A site of 2,000 units of one image each."""
    units = {number: (1, CLASSES[number % 3], 0, 0) for number in range(2000)}
    names = tuple(f"p{number}" for number in units)
    labels = np.array([[one[1] == name for name in CLASSES] for one in units.values()], np.float32)
    source = Source("folder", CLASSES, False, names, labels, names, None, np.zeros, "1")
    source = dataclasses.replace(source, names=UnitNames("patient"))
    given = [f"data.labelled_fraction={fraction}", FIXED, "federation.num_sites=1"]
    composed = change(base("folder"), given)
    store = in_memory(source)
    return deal(source, store, composed, secret).clients[0]


def test_shares_are_random_around_their_fractions_and_labelled_sets_nested() -> None:
    sites = [dealing(fraction) for fraction in (0.0, 0.1, 0.4, 1.0)]
    for site, fraction in zip(sites, (0.0, 0.1, 0.4, 1.0), strict=True):
        assert abs(len(site.test) - 400) < 90 and abs(len(site.validation) - 200) < 70
        assert abs(site.labelled.sum() - fraction * len(site.train)) <= 90
    assert all((sites[0].train == site.train).all() for site in sites)
    for less, more in pairwise(sites):
        assert not (less.labelled & ~more.labelled).any()


def test_the_secret_and_not_the_seed_decides_who_trains() -> None:
    one, other = dealing(secret=b"one"), dealing(secret=b"other")
    assert np.isin(one.validation, other.train).mean() > 0.1
    assert (one.train == dealing(secret=b"one").train).all()


def test_server_and_sites_agree_on_the_test_set_without_a_common_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = ["data.partition=uniform", "data.validation_fraction=0.4"]
    rows = []
    for home in ("server", "site"):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / home))
        dataset = dealt("chestxray14", tmp_path / "data", MANY, given)
        assert dataset is not None
        rows.append((dataset.test_rows.tolist(), dataset.clients[0].train.tolist()))
    assert rows[0][0] == rows[1][0] and rows[0][1] != rows[1][1]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("isic2019", ["privacy.unit=patient"], "name no patient of each image; allowed: lesion"),
        ("chestxray14", ["privacy.unit=lesion"], "name no lesion of each image; allowed: patient"),
        ("medmnist", ["privacy.unit=patient"], "name no patient of each image; allowed: image"),
        ("folder", ["data.columns.patient=null"], "allowed: image; data.columns.patient names"),
        ("folder", ["data.classes=null"], r"set data.classes=\[BCC,MEL,NV\]"),
    ],
)
def test_data_that_cannot_keep_the_promise_are_refused(
    tmp_path: Path, name: str, given: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        dealt_or_refused(name, tmp_path, MANY, ["data.partition=uniform", *given])


def test_a_run_that_was_dealt_otherwise_is_not_continued(tmp_path: Path) -> None:
    ours, others = (UnitHash(0, secret, public_test=True) for secret in (b"ours", b"others"))
    with pytest.raises(UserError, match="an earlier version began this run"):
        require_recorded_dealing(tmp_path, ours)
    record_dealing(tmp_path, ours)
    require_recorded_dealing(tmp_path, ours)
    with pytest.raises(UserError, match="dealt with another secret"):
        require_recorded_dealing(tmp_path, others)
    assert ours.digest() != others.digest()

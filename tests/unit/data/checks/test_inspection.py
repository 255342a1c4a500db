"""Manifest, inspection and card: contents, and what stays private."""

import base64
import dataclasses
import io
import os
import re
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import read_source
from mediffusion_core.data.checks.inspection import conflicts, inspect, overlaps
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.data.partitioning.manifest import write_manifests
from mediffusion_core.data.pseudonyms import hashed, site_salt
from mediffusion_core.data.store.images import ImageError
from mediffusion_core.reporting.data_card import write_data_card
from mediffusion_core.settings import Settings
from simulations.cli.main import app


@pytest.fixture(scope="module")
def overrides(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*tiny, f"data.store={tmp_path_factory.mktemp('store')}"]


@pytest.fixture(scope="module")
def settings(overrides: list[str]) -> Settings:
    return compose("config", overrides)


@pytest.fixture(scope="module")
def dataset(settings: Settings) -> FederatedDataset:
    return open_federated_dataset(settings)


def test_a_manifest_has_one_row_an_image_with_its_split_and_labels(
    dataset: FederatedDataset, tmp_path: Path
) -> None:
    store = dataset.store
    for path, client in zip(write_manifests(dataset, tmp_path), dataset.clients, strict=True):
        assert path == tmp_path / f"{client.site}.parquet"
        rows = pq.read_table(path).to_pylist()
        by_name = {name: row for row, name in enumerate(store.image_ids)}
        assert len(rows) == sum(map(len, (client.train, client.validation, client.test)))
        labelled = set(client.train[client.labelled].tolist()) | set(client.test.tolist())
        if client.validation_labelled:
            labelled |= set(client.validation.tolist())
        for row in rows:
            index = by_name[row["image"]]
            assert index in getattr(client, row["split"])
            assert row["site"] == client.site
            assert row["labelled"] == (index in labelled)
            known = dict(zip(store.classes, (store.labels[index] == 1).tolist(), strict=True))
            assert row["labels"] == (known if row["labelled"] else dict.fromkeys(known))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_missing_label_is_not_a_negative_one(dataset: FederatedDataset, tmp_path: Path) -> None:
    labels = np.array(dataset.store.labels)
    labels[:, 0] = np.nan
    partly = dataclasses.replace(dataset, store=dataclasses.replace(dataset.store, labels=labels))
    name, other = dataset.store.classes[:2]
    rows = pq.read_table(write_manifests(partly, tmp_path)[0]).to_pylist()
    assert all(row["labels"][name] is None for row in rows)
    assert {row["labels"][other] for row in rows if row["labelled"]} == {True, False}


def test_patients_are_hashed_with_a_salt_that_only_its_owner_can_read(
    dataset: FederatedDataset, tmp_path: Path
) -> None:
    paths = write_manifests(dataset, tmp_path)
    again = write_manifests(dataset, tmp_path / "again")
    patients = set(dataset.store.groups)
    for path, other, client in zip(paths, again, dataset.clients, strict=True):
        given = pq.read_table(path).column("patient_id").to_pylist()
        assert given == pq.read_table(other).column("patient_id").to_pylist()
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in given)
        assert not patients & set(given)
        known = dataset.groups(client.rows)
        assert len(set(given)) == len(set(known)) == len(set(zip(given, known, strict=True)))
    salts = dataset.store.place / "salts"
    assert len(list(salts.iterdir())) == len(paths)
    for salt in salts.iterdir():
        assert stat.S_IMODE(os.stat(salt).st_mode) == 0o600
    one, other = (site_salt(tmp_path / "salts", site) for site in ("a", "b"))
    assert one == site_salt(tmp_path / "salts", "a") and len(one) == 32
    assert hashed("patient", one) != hashed("patient", other)


def test_a_salt_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    """With an empty key every patient id could be looked up."""
    site_salt(tmp_path, "a")
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"")
    with pytest.raises(UserError, match="salt of site a is damaged"):
        site_salt(tmp_path, "a")


def test_sound_partitions_are_ready(dataset: FederatedDataset) -> None:
    findings = inspect(dataset)
    assert overlaps(dataset) == 0
    assert not any(finding.grade == "error" for finding in findings)
    texts = [finding.text for finding in findings]
    assert "all 180 images can be read" in texts
    assert any(text.startswith("site site-2: ") and " 0 of them labelled" in text for text in texts)


def test_a_patient_on_two_sides_is_an_error(dataset: FederatedDataset) -> None:
    first = dataset.clients[0]
    leaking = dataclasses.replace(first, test=np.append(first.test, first.train[0]))
    broken = dataclasses.replace(dataset, clients=(leaking, *dataset.clients[1:]))
    assert overlaps(broken) == 2  # the patient, and the unit that it is
    assert inspect(broken)[0].grade == "error"
    assert inspect(broken)[0].text.startswith("2 patients, lesions or duplicates stand in two")


def test_duplicates_and_contradicting_labels_are_named(dataset: FederatedDataset) -> None:
    store = dataset.store
    labels = np.array(store.labels)
    labels[3], labels[5] = 1, 0
    labels[7], labels[9] = np.nan, 1
    pairs = np.array([[3, 5], [7, 9]])
    doubled = dataclasses.replace(store, labels=labels, duplicates=pairs)
    broken = dataclasses.replace(dataset, store=doubled)
    assert conflicts(broken) == [(3, 5)]
    texts = [finding.text for finding in inspect(broken) if finding.grade == "warning"]
    names = f"{store.image_ids[3]}, {store.image_ids[5]}"
    assert f"1 duplicates with contradicting labels, the first: {names}" in texts
    assert any(text.startswith("2 images stand twice, 2 under another patient") for text in texts)


def test_an_image_that_repeats_several_counts_once(dataset: FederatedDataset) -> None:
    pairs = np.array([[3, 5], [3, 9], [5, 9]])
    tripled = dataclasses.replace(dataset.store, duplicates=pairs)
    texts = [f.text for f in inspect(dataclasses.replace(dataset, store=tripled))]
    assert any(text.startswith("2 images stand twice, 2 under another patient") for text in texts)


def test_findings_without_any_label_and_sites_without_labels_are_named(
    dataset: FederatedDataset,
) -> None:
    def texts(**changes: object) -> list[str]:
        clients = tuple(dataclasses.replace(client, **changes) for client in dataset.clients)
        return [f.text for f in inspect(dataclasses.replace(dataset, clients=clients))]

    first = np.arange(len(dataset.store.classes)) == 0
    missing = [text for text in texts(known=first) if "is labelled at no site" in text]
    assert len(missing) == len(dataset.store.classes) - 1
    none = np.zeros(len(dataset.clients[0].train), np.bool_)
    assert any("small enough" in text for text in texts(labelled=none, validation_labelled=True))


def test_no_label_at_all_is_an_error(dataset: FederatedDataset) -> None:
    bare = dataclasses.replace(dataset.store, labels=np.full_like(dataset.store.labels, np.nan))
    broken = dataclasses.replace(dataset, store=bare)
    assert [f.text for f in inspect(broken) if f.grade == "error"] == ["no image has a label"]


def test_the_card_counts_and_names_no_patient(
    dataset: FederatedDataset, settings: Settings, tmp_path: Path
) -> None:
    renamed = dataclasses.replace(
        dataset.store, groups=tuple(f"Doe^Jane-{row}" for row in range(180))
    )
    source = read_source(settings.data, settings.seed)
    path = write_data_card(
        dataclasses.replace(dataset, store=renamed), source, settings, tmp_path / "a/card.html"
    )
    page = path.read_text()
    assert "Doe^Jane" not in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    client = dataset.clients[0]
    row = f"<td>{len(client.train)}</td><td>{int(client.labelled.sum())}</td>"
    assert row in page
    assert 'class="ok">0</b>' in page


def test_the_card_marks_regions_where_they_are_known(
    dataset: FederatedDataset, settings: Settings, tmp_path: Path
) -> None:
    box = np.zeros((64, 64), np.bool_)
    box[8:40, 8:40] = True
    source = dataclasses.replace(
        read_source(settings.data, settings.seed), regions=lambda index, _: box if index else None
    )
    page = write_data_card(dataset, source, settings, tmp_path / "card.html").read_text()
    assert "Where findings lie" in page
    sheet = page.split("Where findings lie")[1].split("base64,")[1].split('"')[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))))
    assert ((pixels == (255, 214, 10)).all(axis=2)).sum() > 16 * 50


def test_the_card_leaves_out_a_region_whose_image_cannot_be_read(
    dataset: FederatedDataset, settings: Settings, tmp_path: Path
) -> None:
    def broken(index: int, finding: str | None) -> None:
        raise ImageError("no such file")

    source = dataclasses.replace(read_source(settings.data, settings.seed), regions=broken)
    page = write_data_card(dataset, source, settings, tmp_path / "card.html").read_text()
    assert "Where findings lie" not in page


def test_a_data_set_that_cannot_be_read_is_not_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "check", "data=isic2019", f"data.root={tmp_path}/gone"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "not ready"
    assert any(line.startswith("error") and "gone" in line for line in lines)


def run(arguments: list[str]) -> int:
    """The status that the command ends with."""
    return int(app(arguments, standalone_mode=False) or 0)


def test_the_commands_end_with_their_result(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["data", "prepare", *overrides])
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert sorted(path.name for path in folder.iterdir()) == [
        "site-0.parquet", "site-1.parquet", "site-2.parquet",
    ]  # fmt: skip
    run(["data", "check", *overrides])
    assert capsys.readouterr().out.splitlines()[-1] == "ready"
    run(["data", "card", *overrides, "--output", str(tmp_path / "card.html")])
    assert Path(capsys.readouterr().out.splitlines()[-1]).is_file()
